"""A client's certificate says for whom it may call; the certificates are those that `medkg certs` makes."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

import medkg

from .authority import Authority, Pair, forge
from .operators import eventually
from .test_tls import ONLY_GPU, connect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer

    from .conftest import Refusal

VECTORS = {"services": ("gpu", "vector"), "embedding_models": {}, "reranking_models": {}}


@pytest.fixture(scope="module")
def server(authority: Authority, start_server: Callable[..., LocalServer]) -> LocalServer:
    """It demands client certificates, on its admin address too."""
    return start_server(**VECTORS, arguments=[*authority.flags(), "--admin-listen", "127.0.0.1:0"])


def https(server: LocalServer) -> str:
    return server.address.replace("http://", "https://")


def credentials(authority: Authority, identity: Pair) -> grpc.ChannelCredentials:
    certificate, key = identity
    return grpc.ssl_channel_credentials(authority.certificate.read_bytes(), key.read_bytes(), certificate.read_bytes())


def audit(server: LocalServer) -> list[dict[str, object]]:
    return [line for line in server.events() if line.get("audit") and line.get("message") == "call refused"]


@pytest.mark.requirement("isolation 12.1")
@pytest.mark.fault("TLS", "a call for a tenant whom the certificate does not name", "refused at once, and audited")
def test_a_certificate_is_for_the_tenants_that_it_names(
    server: LocalServer, authority: Authority, seen: Callable[[str], None]
) -> None:
    with connect(https(server), authority, authority.client("a", "b.c"), max_attempts=4) as services:
        for tenant in ("a", "b.c"):
            services.vector.create_collection("own", 4, tenant=tenant)
            services.vector.upsert("own", ["x"], np.ones((1, 4), dtype=np.float32), tenant=tenant)
        for tenant in ("c", "A", "b", "a.b"):
            with pytest.raises(medkg.PermissionDeniedError) as refused:
                services.vector.search("own", np.ones((1, 4), dtype=np.float32), k=1, tenant=tenant)
            error = refused.value
            assert (error.reason, error.attempts, error.retryable) == ("NOT_AUTHORIZED", 1, False)
            assert error.breaker_state == "closed"
            assert "names tenant a, b.c" in str(error)
            line = audit(server)[-1]
            assert (line["tenant"], line["request_id"]) == (tenant, error.request_id)
        assert services.vector.search("own", np.ones((1, 4), dtype=np.float32), k=1, tenant="a")
    seen(f"{type(error).__name__} {error.reason}, one attempt, breaker closed, one line in the audit")


@pytest.mark.requirement("isolation 12.1")
def test_a_service_calls_for_any_tenant(server: LocalServer, authority: Authority) -> None:
    with connect(https(server), authority, authority.client()) as services:
        for tenant in ("d", "e"):
            services.vector.create_collection("of-a-service", 4, tenant=tenant)


@pytest.mark.requirement("isolation 12.1")
def test_a_client_goes_over_to_another_certificate(server: LocalServer, authority: Authority) -> None:
    with connect(https(server), authority, authority.client("before")) as services:
        with pytest.raises(medkg.PermissionDeniedError):
            services.vector.collections(tenant="after")
        certificate, key = authority.client("after")
        tls = medkg.TlsConfig(ca_file=authority.certificate, cert_file=certificate, key_file=key)
        services.reload(tls=tls, tenant="after")
        assert services.vector.collections() == []
        with pytest.raises(medkg.PermissionDeniedError):
            services.vector.collections(tenant="before")


@pytest.mark.requirement("isolation 12.1")
def test_a_client_uses_a_certificate_that_was_put_in_the_place_of_the_old_one(
    start_server: Callable[..., LocalServer], authority: Authority, tmp_path: Path
) -> None:
    server = start_server(**VECTORS, arguments=[*authority.flags(), "--connection-age", "1"])
    used = tmp_path / "client.pem", tmp_path / "client.key"

    def put(pair: Pair) -> None:
        for source, target in zip(pair, used, strict=True):
            shutil.copy(source, target.with_name("new"))
            target.with_name("new").rename(target)

    put(authority.client("before"))
    with connect(https(server), authority, used, tenant="after") as services:

        def may() -> bool:
            try:
                services.vector.collections()
            except medkg.PermissionDeniedError:
                return False
            return True

        assert not may()
        put(authority.client("after"))
        # Connections live for a second here; the next one shows the new certificate.
        eventually(may)


def test_every_kind_of_call_is_asked_and_health_needs_no_tenant(
    wire: Any, server: LocalServer, authority: Authority, open_channel: Any, refused: Callable[..., Refusal]
) -> None:
    channel = open_channel(server, credentials(authority, authority.client("a")))
    gpu, vector = wire.gpu.GpuServiceStub(channel), wire.vector.VectorServiceStub(channel)
    own, other = [("x-tenant-id", "a")], [("x-tenant-id", "b")]
    status, watch = wire.gpu.GetStatusRequest(), wire.gpu.WatchStatusRequest()
    assert gpu.GetStatus(status, metadata=own, timeout=60)
    following = gpu.WatchStatus(watch, metadata=own, timeout=60)
    assert next(following)
    following.cancel()
    calls = [
        (gpu.GetStatus, status),
        (lambda *a, **k: list(gpu.WatchStatus(*a, **k)), watch),
        (vector.ListCollections, wire.vector.ListCollectionsRequest()),
    ]
    for method, request in calls:
        for tenants in (other, [*own, *other], [*other, *own]):
            refusal = refused(method, request, metadata=tenants)
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_AUTHORIZED")
    # Without a tenant it is told what it is told without TLS.
    assert refused(gpu.GetStatus, status, metadata=[]).reason == "TENANT_MISSING"
    health = channel.unary_unary("/grpc.health.v1.Health/Check")
    assert health(b"", timeout=60)


def test_who_is_bound_to_a_tenant_is_no_operator(
    wire: Any, server: LocalServer, authority: Authority, refused: Callable[..., Refusal]
) -> None:
    told = [line for line in server.events() if str(line.get("message", "")).startswith("operators are served on")]
    address = str(told[-1]["address"])
    request = wire.model.ModelServiceListModelsRequest()

    def models(identity: Pair) -> Any:
        channel = grpc.secure_channel(address, credentials(authority, identity))
        channels.append(channel)
        return wire.model.ModelServiceStub(channel).ListModels

    channels: list[grpc.Channel] = []
    try:
        bound = models(authority.client("operator"))
        assert refused(bound, request, metadata=[("x-tenant-id", "operator")]).reason == "NOT_AUTHORIZED"
        models(authority.client())(request, metadata=[("x-tenant-id", "operator")], timeout=60)
    finally:
        for channel in channels:
            channel.close()


@pytest.mark.requirement("isolation 12.1")
def test_production_wants_a_name_that_medkg_knows(
    authority: Authority, start_server: Callable[..., LocalServer], tmp_path: Path
) -> None:
    """There is no GPU for this server, so it refuses to compute; who may ask for its status is what counts here."""
    arguments = ["--production", *authority.flags()]
    options = {**ONLY_GPU, "device": "cuda", "env": {"CUDA_VISIBLE_DEVICES": ""}}
    address = https(start_server(**options, arguments=arguments))
    for identity, tenant in ((authority.client("a"), "a"), (authority.client(), "b")):
        with connect(address, authority, identity) as services:
            assert services.gpu.status(tenant=tenant).active_device == ""
    unnamed = forge(authority, "unnamed", names="DNS:worker.example.org,URI:spiffe://example.org/worker")
    with connect(address, authority, unnamed) as services, pytest.raises(medkg.PermissionDeniedError) as refused:
        services.gpu.status()
    assert "names neither a tenant nor a service" in str(refused.value)
    # Elsewhere it gets in, for any tenant, as it did before certificates had names.
    lenient = https(start_server(**ONLY_GPU, arguments=authority.flags()))
    with connect(lenient, authority, unnamed) as services:
        assert services.gpu.status().active_device == "cpu"
