"""Raw calls: what a broken or hostile client may send."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from medkg.local import LocalServer

from .authority import Authority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .played import PlayedGpu

TENANT = ("x-tenant-id", "raw")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who issues the certificates of this run."""
    return Authority(tmp_path_factory.mktemp("ca"), "medkg-test")


@pytest.fixture(scope="session")
def open_channel() -> Iterator[Callable[..., grpc.Channel]]:
    """A grpcio channel to a server; with TLS if credentials are given."""
    channels: list[grpc.Channel] = []

    def connect(server: LocalServer, credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
        address = server.address.removeprefix("http://")
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        channels.append(
            grpc.insecure_channel(address, options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options)
        )
        return channels[-1]

    yield connect
    for channel in channels:
        channel.close()


@pytest.fixture(scope="session")
def channel(server: LocalServer, open_channel: Callable[[LocalServer], grpc.Channel]) -> grpc.Channel:
    """A channel to the shared server."""
    return open_channel(server)


@pytest.fixture
def lend(tmp_path: Path) -> Iterator[Callable[..., LocalServer]]:
    """Starts servers on a played GPU, with the role `gpu` unless told otherwise."""
    servers: list[LocalServer] = []

    def start(played: PlayedGpu, *arguments: str, **options: Any) -> LocalServer:
        settings = {"services": ("gpu",), "embedding_models": {}, "reranking_models": {}, "data_dir": None, **options}
        server = LocalServer(
            played.binary,
            device="cuda",
            log_path=tmp_path / f"log-{len(servers)}.jsonl",
            threads=1,
            arguments=("--gpu-lost-grace", "1", "--lease-grace", "0.5", *arguments),
            **settings,
        )
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.kill()


class Refusal:
    """A status with medkg's details."""

    def __init__(self, error: grpc.RpcError) -> None:
        self.code: grpc.StatusCode = error.code()
        self.message: str = error.details() or ""
        self.reason = ""
        self.domain = ""
        self.fields: list[str] = []
        self.retry_seconds: float | None = None
        raw = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
        for detail in status_pb2.Status.FromString(raw).details if raw else ():
            info, bad, retry = (
                error_details_pb2.ErrorInfo(),
                error_details_pb2.BadRequest(),
                error_details_pb2.RetryInfo(),
            )
            if detail.Unpack(info):
                self.reason, self.domain = info.reason, info.domain
            elif detail.Unpack(bad):
                self.fields += [violation.field for violation in bad.field_violations]
            elif detail.Unpack(retry):
                self.retry_seconds = retry.retry_delay.ToTimedelta().total_seconds()


@pytest.fixture(scope="session")
def refused() -> Callable[..., Refusal]:
    """Calls and returns how it was refused; an answer fails the test."""

    def call(method: Callable[..., Any], request: object, metadata: Any = (TENANT,), timeout: float = 60) -> Refusal:
        with pytest.raises(grpc.RpcError) as caught:
            method(request, metadata=metadata, timeout=timeout)
        return Refusal(caught.value)

    return call
