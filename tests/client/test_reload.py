"""A live client goes over to another configuration, by hand or with a file that it follows, and loses no call."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import medkg

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer

ONLY_GPU = {"services": ("gpu",), "embedding_models": {}, "reranking_models": {}, "data_dir": None}
CALLERS = 4
SWITCHES = 40


def replace(path: Path, text: str) -> None:
    """Exchanges a file as editors and deployment tools do."""
    new = path.with_name("new")
    new.write_text(text)
    new.rename(path)


@pytest.mark.fault("Configuration", "addresses are exchanged under load, back and forth", "no call fails")
def test_no_call_is_lost_while_addresses_are_exchanged(
    start_server: Callable[..., LocalServer], wait_until: Callable[..., None], seen: Callable[[str], None]
) -> None:
    one, two = start_server(**ONLY_GPU), start_server(**ONLY_GPU)
    calls, stop = [0] * CALLERS, threading.Event()

    with medkg.connect(address=one.address, tenant="a", timeout=20, max_attempts=1) as services:

        def work(number: int) -> None:
            while not stop.is_set():
                assert services.gpu.status().state == "ready"
                calls[number] += 1

        def go_on() -> None:
            before = list(calls)
            wait_until(
                lambda: all(n > b for n, b in zip(calls, before, strict=True)) or any(one.done() for one in working)
            )

        with ThreadPoolExecutor(CALLERS) as pool:
            working = [pool.submit(work, number) for number in range(CALLERS)]
            try:
                for turn in range(SWITCHES):
                    services.reload(address=(two if turn % 2 else one).address)
                    go_on()
                # The last switch went to the second server: nobody needs the first one any more.
                one.stop()
                go_on()
                assert [endpoint.address for endpoint in services.gpu.endpoints()] == [two.address]
            finally:
                stop.set()
            for future in working:
                future.result()
    seen(
        f"{SWITCHES} exchanges under {CALLERS} callers without retries, then the other server was stopped; none failed"
    )


def test_awaitable_clients_go_over_too(start_server: Callable[..., LocalServer], server: LocalServer) -> None:
    other = start_server(**ONLY_GPU)

    async def calling() -> None:
        async with medkg.connect_async(address=other.address, tenant="a", max_attempts=1) as services:
            out = {asyncio.create_task(services.gpu.status()) for _ in range(CALLERS)}
            for turn in range(SWITCHES):
                services.reload(address=(server if turn % 2 else other).address)
                done, out = await asyncio.wait(out, return_when=asyncio.FIRST_COMPLETED)
                assert {task.result().state for task in done} == {"ready"}
                out |= {asyncio.create_task(services.gpu.status()) for _ in done}
            for status in await asyncio.gather(*out):
                assert status.state == "ready"
            assert services.config.address == server.address

    asyncio.run(calling())


def test_limits_hold_for_the_next_call(server: LocalServer, silent: str) -> None:
    texts = ["aspirin", "ibuprofen", "metformin", "insulin", "warfarin"]
    with medkg.connect(address=server.address, tenant="a") as services:
        assert services.embedding.embed(texts).usage.calls == 1
        services.reload(max_batch_texts=2)
        assert services.embedding.embed(texts).usage.calls == 3
        assert services.config.address == server.address, "what is not named stays"
        services.reload(address=silent, timeout=0.2, max_attempts=1)
        with pytest.raises(medkg.ServiceTimeoutError):
            services.embedding.embed(texts)
        services.reload(medkg.ClientConfig(address=server.address, tenant="b"))
        assert services.embedding.embed(texts).usage.calls == 1
        assert {client.config.tenant for client in (services, services.gpu, services.vector)} == {"b"}


def test_one_client_of_its_own_goes_over_alone(server: LocalServer) -> None:
    with medkg.EmbeddingClient(address=server.address, tenant="a") as one, medkg.GpuClient(one.config) as other:
        one.reload(tenant="b")
        assert (one.config.tenant, other.config.tenant) == ("b", "a")


def test_what_is_out_ends_where_it_began(start_server: Callable[..., LocalServer], server: LocalServer) -> None:
    first = start_server(**ONLY_GPU)
    with (
        medkg.connect(address=first.address, tenant="a") as services,
        services.gpu.watch_status() as watch,
    ):
        assert next(watch).state == "ready"
        services.reload(address=server.address)
        first.stop()
        assert next(watch, None) is None, "it ends when the server stops at which it began"
        assert services.gpu.status().state == "ready"


def test_what_is_known_of_an_address_is_kept(refusing: str, server: LocalServer) -> None:
    breaker = {"breaker_failures": 1, "breaker_cooldown": 600.0}
    with medkg.connect(address=refusing, tenant="a", max_attempts=1, **breaker) as services:
        with pytest.raises(medkg.ServiceUnavailableError):
            services.gpu.status()
        services.reload(address=None, addresses=[refusing, server.address], timeout=7.0)
        [same] = services.gpu.endpoints()
        assert (same.address, same.breaker) == (refusing, "open")
        assert same.last_failure


@pytest.mark.requirement("isolation 5.3")
def test_a_refused_configuration_changes_nothing(server: LocalServer, tmp_path: Path) -> None:
    with medkg.connect(address=server.address, tenant="a") as services:
        before = services.config
        with pytest.raises(medkg.ConfigError) as caught:
            services.reload(timeout=-1.0, max_attempts=0)
        assert [field for field, _ in caught.value.field_violations] == ["timeout", "max_attempts"]
        # Files are read before anything is exchanged.
        absent = medkg.TlsConfig(ca_file=tmp_path / "ca.pem")
        with pytest.raises(medkg.ConfigError, match=r"ca\.pem"):
            services.reload(address="https://127.0.0.1:1", tls=absent)
        with pytest.raises(medkg.ConfigError, match="absent"):
            services.watch_config(tmp_path / "absent.toml")
        with pytest.raises(medkg.ConfigError, match="MEDKG_CONFIG"):
            services.watch_config(env=False)
        assert services.config == before
        assert services.gpu.status().state == "ready"


def test_a_closed_client_stays_closed(server: LocalServer) -> None:
    services = medkg.connect(address=server.address, tenant="a")
    services.embedding.close()
    services.reload(tenant="b")
    assert services.gpu.status().state == "ready", "the others are open"
    services.close()
    with pytest.raises(medkg.MedkgError, match="closed"):
        services.reload(tenant="c")
    assert services.config.tenant == "b"


def test_pickled_copies_and_forked_children_have_the_new_configuration(
    server: LocalServer, refusing: str, script: Callable[..., Any]
) -> None:
    services = medkg.connect(address=refusing, tenant="a")
    services.reload(address=server.address)
    for travelled in (services, services.gpu):
        copy = pickle.loads(pickle.dumps(travelled))  # noqa: S301 - our own
        assert copy.config.address == server.address
    done = script(
        """
        import os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        import medkg
        services = medkg.connect(address=sys.argv[1], tenant="a", max_attempts=1)
        try:
            services.gpu.status()
        except medkg.ServiceUnavailableError:
            pass
        services.reload(address=sys.argv[2])
        for use_before in (False, True):
            if use_before:
                services.gpu.status()
            if (child := os.fork()) == 0:
                state = services.gpu.status().state
                services.reload(timeout=3.0)
                os.write(1, f"{state} {services.gpu.status().state} {services.config.timeout}\\n".encode())
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        print(services.config.timeout)
        """,
        refusing,
        server.address,
    ).finish()
    assert done.out.splitlines() == ["ready ready 3.0"] * 2 + ["None"], done.err


@pytest.mark.requirement("isolation 4.3")
@pytest.mark.requirement("isolation 3.3")
@pytest.mark.fault(
    "Configuration", "a file that is followed breaks under load", "nothing changes; the log tells it once"
)
def test_a_file_is_followed(
    start_server: Callable[..., LocalServer],
    tmp_path: Path,
    wait_until: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    seen: Callable[[str], None],
) -> None:
    caplog.set_level(logging.INFO, "medkg")
    one, two = start_server(**ONLY_GPU), start_server(**ONLY_GPU)
    path = tmp_path / "medkg.toml"
    path.write_text(f"address = '{one.address}'\ntimeout = 20\n")

    def told(level: int) -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == level]

    with medkg.connect(tenant="mine") as services:
        services.watch_config(path, env=False, tenant="mine", max_attempts=1)

        def calls_until(condition: Callable[[], bool]) -> None:
            def met() -> bool:
                assert services.gpu.status().state == "ready"
                return condition()

            wait_until(met)

        assert (services.config.address, services.config.tenant) == (one.address, "mine")
        for text in ("address = 'http://127.0.0.1:1", "timeout = -1", f"adress = '{two.address}'"):
            path.write_text(text)
            broken = len(told(logging.ERROR))
            calls_until(lambda broken=broken: len(told(logging.ERROR)) > broken)  # type: ignore[misc]
        assert services.config.address == one.address
        replace(path, f"address = '{two.address}'\ntimeout = 20\ntenant = 'theirs'\n")
        calls_until(lambda: services.config.address == two.address)
        assert services.config.tenant == "mine", "an argument is stronger than the file"
        one.stop()
        calls_until(lambda: services.gpu.endpoints()[0].address == two.address)
        path.unlink()
        calls_until(lambda: len(told(logging.ERROR)) == 4)
        assert services.config.address == two.address
    errors = told(logging.ERROR)
    assert all(str(path) in message for message in errors)
    assert "did you mean" in errors[2]
    assert told(logging.INFO) == [f"{path} has changed and is used: address"]
    assert len(errors) == 4, "each is told once"
    seen("syntax, a value out of range, a misspelt key and an absent file: no call failed, each was told once")


def test_links_that_are_exchanged_are_followed(
    server: LocalServer, tmp_path: Path, wait_until: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "medkg")
    # As Kubernetes mounts a ConfigMap: the file is a link through a link to a folder, and that one is exchanged.
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "medkg.yaml").write_text(f"address: {server.address}\ntenant: {name}\n")
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "medkg.yaml").symlink_to("..data/medkg.yaml")

    async def follow() -> None:
        async with medkg.AsyncGpuClient(address=server.address) as client:
            client.watch_config(tmp_path / "medkg.yaml", env=False)
            assert (await client.status()).state == "ready"
            assert client.config.tenant == "one"
            (tmp_path / "next").symlink_to("two")
            (tmp_path / "next").rename(tmp_path / "..data")
            wait_until(lambda: client.config.tenant == "two")
            assert (await client.status()).state == "ready"

    asyncio.run(follow())


def test_a_reload_by_hand_ends_the_following(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    path = tmp_path / "medkg.toml"
    path.write_text("tenant = 'file'")
    monkeypatch.setenv("MEDKG_CONFIG", os.fspath(path))
    monkeypatch.setenv("MEDKG_ADDRESS", server.address)
    with medkg.connect() as services, medkg.connect() as witness:
        services.watch_config()
        assert (services.config.tenant, services.config.address) == ("file", server.address)
        services.reload(tenant="hand")
        # It began to follow later, and so looks later.
        witness.watch_config()
        replace(path, "tenant = 'later'")
        wait_until(lambda: witness.config.tenant == "later")
        assert services.gpu.status().state == "ready"
        assert services.config.tenant == "hand"


def test_a_forked_child_goes_on_following(server: LocalServer, tmp_path: Path, script: Callable[..., Any]) -> None:
    path = tmp_path / "medkg.toml"
    path.write_text(f"address = '{server.address}'\ntenant = 'before'\n")
    done = script(
        """
        import os, pathlib, sys, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        import medkg
        services = medkg.connect()
        services.watch_config(sys.argv[1], env=False)
        services.gpu.status()
        if (child := os.fork()) == 0:
            path = pathlib.Path(sys.argv[1])
            path.write_text(path.read_text().replace("before", "after"))
            deadline = time.monotonic() + 60
            while services.config.tenant != "after" and time.monotonic() < deadline:
                services.gpu.status()
                time.sleep(0.01)
            os.write(1, services.config.tenant.encode())
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """,
        path,
    ).finish()
    assert done.out == "after", done.err
