"""Several gpu-servers of one host that share a GPU which NVML plays, and tell each other of it in a real Redis."""

from __future__ import annotations

import itertools
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import medkg

from .operators import eventually
from .played import NUMBER, PlayedGpu
from .test_gpu_truth import GIB
from .test_leases import client

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer
    from tests.services import Redis

GPU = f"GPU-{NUMBER}"
KEY = f"medkg:gpu:{GPU}"


@pytest.fixture
def join(lend: Callable[..., LocalServer], tmp_path: Path, redis: Redis) -> Callable[..., LocalServer]:
    """Starts one more gpu-server on the same GPU."""
    numbers = itertools.count()

    def start(*, total: int = 80 * GIB, **options: Any) -> LocalServer:
        folder = tmp_path / f"gpu-{next(numbers)}"
        folder.mkdir()
        return lend(PlayedGpu(folder, total=total), "--lease-store", redis.url, **options)

    return start


def others(client: medkg.GpuClient) -> int | None:
    return client.device("cuda:0").device.held_by_others_bytes


def test_processes_lease_the_same_gpu_only_once(join: Callable[..., LocalServer], redis: Redis) -> None:
    one, two = client(join(), "a"), client(join(), "a")
    lease = one.allocate(50 * GIB)
    # Known at once, whatever the other one heard last.
    with pytest.raises(medkg.RateLimitedError, match=f"most left is {30 * GIB}") as full:
        two.allocate(31 * GIB)
    assert full.value.reason == "GPU_MEMORY_EXHAUSTED"
    assert (others(two), two.device("cuda:0").device.leased_memory_bytes) == (50 * GIB, 0)
    assert two.allocate(30 * GIB).memory_bytes == 30 * GIB
    eventually(lambda: others(one) == 30 * GIB)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(two.allocate, 50 * GIB, wait=60)
        one.release(lease.lease_id)
        assert waiting.result(timeout=60).memory_bytes == 50 * GIB
    # Whoever looks into Redis sees processes and bytes.
    eventually(lambda: str(80 * GIB).encode() in redis.call("HGETALL", KEY))


def test_a_race_overdraws_nothing(join: Callable[..., LocalServer]) -> None:
    clients = [client(join(), "a") for _ in range(2)]

    def take(number: int) -> int:
        try:
            return clients[number % 2].allocate(3 * GIB).memory_bytes
        except medkg.RateLimitedError:
            return 0

    with ThreadPoolExecutor(16) as pool:
        granted = list(pool.map(take, range(64)))
    assert sum(granted) == 78 * GIB


def test_what_a_process_held_is_free_when_it_stops_and_when_it_is_killed(
    join: Callable[..., LocalServer], redis: Redis
) -> None:
    stays, stops, dies = join(), join(), join()
    client(stops, "a").allocate(20 * GIB, outlives_connection=True)
    client(dies, "a").allocate(30 * GIB, outlives_connection=True)
    mine = client(stays, "a")
    with pytest.raises(medkg.RateLimitedError):
        mine.allocate(31 * GIB)
    assert stops.stop() == 0
    mine.allocate(50 * GIB)
    dies.kill()
    # It cannot say so; nobody hears of it any more for a while.
    mine.allocate(30 * GIB, wait=60)
    assert redis.call("HLEN", KEY) == b":1\r\n"


def test_without_redis_nothing_is_leased_and_what_is_leased_stays(
    join: Callable[..., LocalServer], redis: Redis
) -> None:
    one, two = client(join(), "a"), client(join(), "a")
    lease = one.allocate(50 * GIB, ttl=60)
    redis.pause()
    with pytest.raises(medkg.ServiceUnavailableError, match="lease store does not answer") as unknown:
        one.allocate(GIB)
    assert unknown.value.reason == "LEASE_STORE_UNAVAILABLE"
    redis.resume()
    eventually(lambda: try_allocating(one, 30 * GIB))
    # Its memory is lost, and the lease is not.
    redis.stop()
    with pytest.raises(medkg.ServiceUnavailableError, match="leases that are there go on"):
        two.allocate(GIB)
    assert one.renew(lease.lease_id, ttl=3600) > lease.expires_at
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(two.allocate, 50 * GIB, wait=60)
        redis.start()
        eventually(lambda: str(80 * GIB).encode() in redis.call("HGETALL", KEY))
        with pytest.raises(medkg.RateLimitedError):
            two.allocate(GIB)
        assert one.release(lease.lease_id) == 50 * GIB
        assert waiting.result(timeout=60).memory_bytes == 50 * GIB


def try_allocating(client: medkg.GpuClient, size: int) -> bool:
    try:
        client.allocate(size)
    except medkg.ServiceUnavailableError:
        return False
    return True


def test_garbage_in_redis_is_cleared_or_told(join: Callable[..., LocalServer], redis: Redis) -> None:
    mine = client(join(), "a")
    redis.call("HSET", KEY, "nobody", "much until tomorrow", "gone", f"{80 * GIB} 1")
    mine.allocate(80 * GIB)
    eventually(lambda: redis.call("HLEN", KEY) == b":1\r\n")
    redis.call("SET", KEY, "not a hash")
    with pytest.raises(medkg.ServiceUnavailableError, match="WRONGTYPE"):
        mine.allocate(1)


def test_models_and_collections_of_one_process_bound_the_other(
    join: Callable[..., LocalServer], tmp_path: Path
) -> None:
    holds = join(total=7_000_000, services=("gpu", "vector"), data_dir=tmp_path / "data")
    wants = join(total=7_000_000, services=("gpu", "vector"), data_dir=tmp_path / "more-data")
    rows = np.random.default_rng(1).standard_normal((1_000, 1024), dtype=np.float32)
    ids = [f"p{number}" for number in range(len(rows))]

    def vectors(server: LocalServer) -> medkg.VectorClient:
        made = medkg.VectorClient(address=server.address, tenant="a", timeout=60)
        made.create_collection("c", 1024)
        return made

    vectors(holds).upsert("c", ids, rows)
    mine, wanted = client(wants, "a"), vectors(wants)
    eventually(lambda: others(mine) == rows.nbytes)
    with pytest.raises(medkg.RateLimitedError, match="most left is"):
        mine.allocate(3_000_000)
    with pytest.raises(medkg.RateLimitedError, match=f"other servers of this host {rows.nbytes}") as held:
        wanted.upsert("c", ids, rows)
    assert held.value.reason == "GPU_MEMORY_EXHAUSTED"


def test_an_address_that_cannot_be_used_is_refused_without_its_password(gpu_server_binary: Path) -> None:
    for address in ("redis//host", "http://:secret@host"):
        ended = subprocess.run(
            [gpu_server_binary, "--services", "gpu", "--device", "cpu", "--lease-store", address],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 64
        assert "--lease-store" in ended.stderr
        assert "secret" not in ended.stderr + ended.stdout
