"""Servers that are found by name or in a registry, and that come and go while callers work."""

from __future__ import annotations

import pickle
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

import medkg
from medkg.local import LocalServer
from tests.client.faults.load import Load
from tests.client.faults.wire import Proxy
from tests.server.checkpoints import write_bert
from tests.services import NameServer, Redis, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TEXT = ["Aspirin inhibits platelet aggregation."]


def has_ipv6_loopback() -> bool:
    """Python may know IPv6 where the machine, or the container, has it switched off."""
    with suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.fixture
def names() -> Iterator[NameServer]:
    """A name server of the test's own."""
    server = NameServer()
    yield server
    server.stop()


class Fleet:
    """Servers with a tiny model of their own each, whose digest tells their answers apart."""

    def __init__(self, binary: Path, minilm_dir: Path, folder: Path) -> None:
        self._binary, self._minilm, self._folder = binary, minilm_dir, folder
        self.servers: list[LocalServer] = []
        self.digests: list[str] = []

    def start(self, *arguments: str, **options: Any) -> LocalServer:
        """One more."""
        number = len(self.servers)
        model = write_bert(self._folder / f"model-{number}", self._minilm, seed=number)
        server = LocalServer(
            self._binary,
            services=("embedding",),
            embedding_models={"tiny": model.folder},
            threads=1,
            log_path=self._folder / f"server-{number}.jsonl",
            arguments=("--dtype", "f32", *arguments),
            **options,
        )
        self.servers.append(server)
        self.digests.append(model.digest)
        return server.start()


@pytest.fixture
def fleet(gpu_server_binary: Path, minilm_dir: Path, tmp_path: Path) -> Iterator[Fleet]:
    """Servers that are ended after the test."""
    servers = Fleet(gpu_server_binary, minilm_dir, tmp_path)
    yield servers
    for server in servers.servers:
        server.kill()


def port(server: LocalServer) -> int:
    return int(server.address.rpartition(":")[2])


def srv(*servers: LocalServer, priority: int = 0) -> list[str]:
    """Records that lead to the servers, by a host whose address is the loopback's."""
    hosts = [f"--srv-host=_medkg._tcp.test,gpu.test,{port(server)},{priority}" for server in servers]
    return ["--host-record=gpu.test,127.0.0.1", *hosts]


def answering(client: medkg.EmbeddingClient, calls: int = 40) -> set[str]:
    """The digests of those that answer."""
    return {client.embed(TEXT).model_digest for _ in range(calls)}


@pytest.mark.requirement("isolation 6.1")
def test_every_server_of_an_srv_record_is_used(fleet: Fleet, names: NameServer) -> None:
    names.serve(*srv(fleet.start(), fleet.start()))
    with medkg.EmbeddingClient(
        address="srv+http://_medkg._tcp.test", name_server=names.address, tenant="demo"
    ) as client:
        assert answering(client) == set(fleet.digests)
        found = client.endpoints()
    assert sorted(one.address for one in found) == sorted(server.address for server in fleet.servers)
    assert all(one.breaker == "closed" and one.pending == 0 for one in found)


def test_the_less_preferred_servers_of_an_srv_record_are_not_used(fleet: Fleet, names: NameServer) -> None:
    first, second = fleet.start(), fleet.start()
    names.serve(*srv(first, priority=1), *srv(second, priority=2)[1:])
    with medkg.EmbeddingClient(
        address="srv+http://_medkg._tcp.test", name_server=names.address, tenant="demo"
    ) as client:
        assert answering(client) == {fleet.digests[0]}


def test_every_address_of_a_name_is_a_server(fleet: Fleet, names: NameServer) -> None:
    server = fleet.start()
    names.serve("--host-record=gpu.test,127.0.0.1", "--host-record=gpu.test,127.0.0.2")
    address = f"dns+http://gpu.test:{port(server)}"
    with medkg.EmbeddingClient(address=address, name_server=names.address, tenant="demo") as client:
        # Nobody listens at the second one: calls go on to the first.
        assert answering(client) == set(fleet.digests)
        found = {one.address for one in client.endpoints()}
    assert found == {f"http://127.0.0.{host}:{port(server)}" for host in (1, 2)}


def test_names_do_not_lead_plaintext_to_other_machines(fleet: Fleet, names: NameServer) -> None:
    server = fleet.start()
    names.serve(
        "--host-record=gpu.test,10.1.2.3", "--host-record=both.test,10.1.2.3", "--host-record=both.test,127.0.0.1"
    )
    with (
        medkg.EmbeddingClient(
            address=f"dns+http://gpu.test:{port(server)}", name_server=names.address, tenant="demo"
        ) as client,
        pytest.raises(medkg.ServiceUnavailableError, match=r"10\.1\.2\.3.*allow_plaintext") as caught,
    ):
        client.embed(TEXT)
    assert caught.value.endpoint == "", "nothing was sent"
    with medkg.EmbeddingClient(
        address=f"dns+http://both.test:{port(server)}", name_server=names.address, tenant="demo"
    ) as client:
        assert answering(client, 4) == set(fleet.digests)
        assert [one.address for one in client.endpoints()] == [server.address]
        client.reload(allow_plaintext=True, connect_timeout=0.5)
        client.embed(TEXT)
        assert {one.address for one in client.endpoints()} == {server.address, f"http://10.1.2.3:{port(server)}"}


@pytest.mark.fault(
    "Discovery",
    "the records of a name change again and again under load, and the name server is gone in between",
    "no call fails; those that are named are used, those that are named no more are not",
)
def test_names_that_flap(
    fleet: Fleet, names: NameServer, seen: Callable[[str], None], wait_until: Callable[..., None]
) -> None:
    servers = [fleet.start() for _ in range(3)]
    names.serve(*srv(servers[0]))
    with (
        medkg.EmbeddingClient(
            address="srv+http://_medkg._tcp.test", name_server=names.address, tenant="demo"
        ) as client,
        Load(client) as load,
    ):
        for round_ in range(1, 5):
            wanted = {fleet.digests[round_ % 3], fleet.digests[(round_ + 1) % 3]}
            names.serve(*srv(servers[round_ % 3], servers[(round_ + 1) % 3]))
            wait_until(lambda wanted=wanted: {call.digest for call in load.calls[-30:]} == wanted)
            names.stop()
            load.wait_for(100)
    assert not load.errors(), load.errors()[:3]
    seen("4 changes, each followed by an outage of the name server; no call failed")


@pytest.mark.skipif(not has_ipv6_loopback(), reason="this machine's loopback has no IPv6 address, ::1")
def test_a_name_with_aaaa_records_alone_leads_to_them(fleet: Fleet, names: NameServer) -> None:
    wire = Proxy(fleet.start().address, listens="::1")  # LocalServer's listen on IPv4
    names.serve("--host-record=gpu.test,::1")
    address = f"dns+http://gpu.test:{wire.address.rpartition(':')[2]}"
    with medkg.EmbeddingClient(address=address, name_server=names.address, tenant="demo") as client:
        assert answering(client, 4) == set(fleet.digests)
        assert [one.address for one in client.endpoints()] == [wire.address]
    wire.stop()


def test_nobody_is_found_until_the_first_server_is_there(
    fleet: Fleet, names: NameServer, wait_until: Callable[..., None]
) -> None:
    names.serve()
    with medkg.EmbeddingClient(
        address="srv+http://_medkg._tcp.test", name_server=names.address, tenant="demo"
    ) as client:
        with pytest.raises(
            medkg.ServiceUnavailableError, match=r"no server was found: srv\+http://_medkg._tcp.test"
        ) as caught:
            client.embed(TEXT)
        assert (caught.value.attempts, caught.value.retryable) == (0, True)
        assert client.endpoints() == []
        names.serve(*srv(fleet.start()))

        def is_found() -> bool:
            with suppress(medkg.ServiceUnavailableError):  # the name is looked up once a second at most
                client.embed(TEXT)
            return len(client.endpoints()) == 1

        wait_until(is_found)
        assert answering(client, 4) == set(fleet.digests)


def registering(fleet: Fleet, redis: Redis, *arguments: str, **options: Any) -> LocalServer:
    return fleet.start("--registry", redis.url, "--advertise", "http://127.0.0.1:0", *arguments, **options)


@pytest.mark.requirement("isolation 6.1")
@pytest.mark.fault(
    "Discovery",
    "registered servers are added, drained (SIGTERM) and killed one after the other under load",
    "no call fails; new ones are used, those that leave are not",
)
def test_registered_servers_come_and_go(
    fleet: Fleet, redis: Redis, seen: Callable[[str], None], wait_until: Callable[..., None]
) -> None:
    first = registering(fleet, redis)
    config = medkg.ClientConfig(registry=medkg.RegistryConfig(redis=redis.url), tenant="demo")

    def used(digests: list[str]) -> Callable[[], bool]:
        return lambda: {call.digest for call in load.calls[-30:]} == set(digests)

    with medkg.EmbeddingClient(config) as client, Load(client) as load:
        wait_until(used(fleet.digests[:1]))
        second = registering(fleet, redis)
        wait_until(used(fleet.digests[:2]))
        assert first.stop() == 0
        wait_until(used(fleet.digests[1:2]))
        registering(fleet, redis)
        wait_until(used(fleet.digests[1:3]))
        second.kill()
        wait_until(used(fleet.digests[2:3]))
    assert not load.errors(), load.errors()[:3]
    seen("2 added, 1 drained, 1 killed; no call failed")


@pytest.mark.fault(
    "Discovery",
    "the registry's Redis stops, and comes back empty",
    "no call fails; the servers say again that they are there",
)
def test_a_registry_that_is_gone_takes_nothing_away(
    fleet: Fleet, redis: Redis, seen: Callable[[str], None], wait_until: Callable[..., None]
) -> None:
    server = registering(fleet, redis)
    config = medkg.ClientConfig(registry=medkg.RegistryConfig(redis=redis.url), tenant="demo")
    registry = medkg.ServiceRegistry(config)
    with medkg.EmbeddingClient(config) as client, Load(client) as load:
        load.wait_for(100)
        redis.stop()
        with pytest.raises(medkg.ServiceUnavailableError, match="the registry's Redis does not answer"):
            registry.servers()
        load.wait_for(500)
        redis.start()
        wait_until(lambda: [one.address for one in registry.servers()] == [server.address])
        load.wait_for(100)
    assert not load.errors(), load.errors()[:3]
    seen("no call failed; the server was listed again")


@pytest.mark.requirement("isolation 6.1")
def test_a_server_registers_itself_and_takes_itself_out(
    fleet: Fleet, redis: Redis, wait_until: Callable[..., None]
) -> None:
    server = registering(fleet, redis, "--registry-cluster", "ward-7")
    registry = medkg.ServiceRegistry(registry=medkg.RegistryConfig(redis=redis.url, cluster="ward-7"))
    wait_until(lambda: bool(registry.servers()))
    (listed,) = registry.servers()
    assert (listed.address, listed.services) == (server.address, ["embedding"])
    (endpoint,) = registry.endpoints("embedding")
    assert (endpoint.address, endpoint.serving, endpoint.breaker) == (server.address, "serving", "closed")
    assert list(registry.services()) == ["embedding"]
    assert medkg.ServiceRegistry(registry=medkg.RegistryConfig(redis=redis.url)).servers() == [], "another cluster"
    assert server.stop() == 0
    assert registry.servers() == []


def test_servers_that_do_not_register_themselves_are_registered_by_hand(
    fleet: Fleet, redis: Redis, wait_until: Callable[..., None]
) -> None:
    server = fleet.start()
    config = medkg.ClientConfig(registry=medkg.RegistryConfig(redis=redis.url), tenant="demo")
    registry = pickle.loads(pickle.dumps(medkg.ServiceRegistry(config)))  # noqa: S301 - our own
    with medkg.EmbeddingClient(config) as client:
        with registry.register(server.address, ["embedding"], lease=1.0):
            assert client.embed(TEXT).model_digest == fleet.digests[0]
            keys = redis.call("KEYS", "medkg:servers:*")
            assert server.address.encode() in keys
        assert registry.servers() == []
    assert not registry.deregister(server.address)
    registry.register(server.address, ["embedding"])
    assert registry.deregister(server.address)


def test_a_server_whose_process_is_gone_is_listed_no_more(
    redis: Redis, script: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    code = """
        import sys, medkg
        registry = medkg.ServiceRegistry(registry=medkg.RegistryConfig(redis=sys.argv[1]))
        kept = registry.register("http://127.0.0.1:9", ["embedding"], lease=0.5)
        print("registered", flush=True)
        sys.stdin.readline()
    """
    running = script(code, redis.url)
    assert running.line() == "registered"
    registry = medkg.ServiceRegistry(registry=medkg.RegistryConfig(redis=redis.url))
    (endpoint,) = registry.endpoints("embedding")
    assert endpoint.serving == "unknown"
    assert "cannot connect" in (endpoint.last_failure or "")
    assert endpoint.breaker == "closed", "asking is no call"
    running.end()
    wait_until(lambda: registry.servers() == [])


def test_a_registry_with_other_things_in_it_is_borne(redis: Redis) -> None:
    redis.call("SADD", "medkg:servers:{default}", "http://127.0.0.1:9", "gone", "nonsense")
    redis.call("SET", "medkg:servers:{default}:nonsense", "{]")
    redis.call("SET", "medkg:servers:{default}:http://127.0.0.1:9", '{"address": "x", "services": ["embedding"]}')
    registry = medkg.ServiceRegistry(registry=medkg.RegistryConfig(redis=redis.url), tenant="demo")
    assert [one.address for one in registry.servers()] == ["x"]
    with pytest.raises(medkg.ServiceUnavailableError, match="no server was found"):
        registry.endpoints("embedding")


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(medkg.ConfigError) as caught:
        medkg.EmbeddingClient(
            address="http://127.0.0.1:1",
            registry=medkg.RegistryConfig(redis="http://me:hunter2@x", cluster="a b"),
            name_server="gpu.test",
            max_connections=0,
        )
    fields = [field for field, _ in caught.value.field_violations]
    assert fields == ["registry.redis", "address", "name_server", "max_connections"]
    assert "hunter2" not in str(caught.value)
    registry = medkg.ServiceRegistry(address="http://127.0.0.1:1")
    with pytest.raises(medkg.ConfigError, match="registry: is missing"):
        registry.servers()
    with pytest.raises(medkg.ConfigError, match="give one of embedding, reranking, vector, gpu"):
        registry.endpoints("speech")  # type: ignore[arg-type]  # what is wrong with it is what is tested


@pytest.mark.requirement("isolation 6.1")
def test_a_server_that_must_be_one_is_not_chosen_among_several(redis: Redis) -> None:
    registry = medkg.ServiceRegistry(registry=medkg.RegistryConfig(redis=redis.url), tenant="demo")
    kept = [registry.register(f"http://127.0.0.1:{free_port()}", ["vector", "gpu"]) for _ in range(2)]
    services = medkg.connect(registry.config)
    with pytest.raises(medkg.ConfigError, match="give vector_addresses"):
        services.vector.collections()
    with pytest.raises(medkg.ConfigError, match="give gpu_addresses"):
        services.gpu.status()
    kept[0].leave()
    with pytest.raises(medkg.ServiceUnavailableError, match="Connection refused"):
        medkg.connect(registry.config, max_attempts=1).gpu.status()
