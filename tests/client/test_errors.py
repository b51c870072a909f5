"""Exceptions: their family, what they carry, and that they travel."""

from __future__ import annotations

import pickle

import grpc
import pytest

import medkg
from medkg import errors

CLASSES = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_exception_travels_with_all_it_carries(cls: type[medkg.MedkgError]) -> None:
    details = {
        "code": "UNAVAILABLE",
        "reason": "QUEUE_FULL",
        "message": "full",
        "service": "EmbeddingService",
        "method": "GenerateEmbeddings",
        "endpoint": "http://a:1",
        "request_id": "r",
        "trace_id": "t",
        "tenant": "demo",
        "attempts": 3,
        "retryable": True,
        "retry_after": 1.5,
        "field_violations": [("texts[3]", "is empty")],
        "breaker_state": "open",
    }
    twin = pickle.loads(pickle.dumps(cls("what happened", **details)))  # noqa: S301 - our own
    assert type(twin) is cls
    assert str(twin) == "what happened"
    assert {name: getattr(twin, name) for name in details} == details


def test_the_family() -> None:
    assert all(issubclass(cls, medkg.MedkgError) for cls in CLASSES)
    assert issubclass(medkg.ServiceUnavailableError, ConnectionError)
    assert issubclass(medkg.CircuitOpenError, medkg.ServiceUnavailableError)
    assert issubclass(medkg.ServiceTimeoutError, TimeoutError)
    assert issubclass(medkg.ValidationError, ValueError)
    for cls in (medkg.GpuLostError, medkg.GpuOutOfMemoryError):
        assert issubclass(cls, medkg.GpuNotAvailableError)
    assert not issubclass(medkg.GpuNotAvailableError, medkg.ServiceError), "`except ServiceError` must not hide it"


@pytest.mark.requirement("isolation 6.3")
@pytest.mark.requirement("isolation 6.4")
@pytest.mark.parametrize(
    ("code", "cls", "attempts"),
    [
        (grpc.StatusCode.UNAVAILABLE, medkg.ServiceUnavailableError, 2),
        (grpc.StatusCode.DEADLINE_EXCEEDED, medkg.ServiceTimeoutError, 2),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, medkg.RateLimitedError, 2),
        (grpc.StatusCode.INVALID_ARGUMENT, medkg.EmbeddingValidationError, 1),
        (grpc.StatusCode.OUT_OF_RANGE, medkg.EmbeddingValidationError, 1),
        (grpc.StatusCode.NOT_FOUND, medkg.NotFoundError, 1),
        (grpc.StatusCode.ALREADY_EXISTS, medkg.AlreadyExistsError, 1),
        (grpc.StatusCode.FAILED_PRECONDITION, medkg.FailedPreconditionError, 1),
        (grpc.StatusCode.UNAUTHENTICATED, medkg.AuthenticationError, 1),
        (grpc.StatusCode.PERMISSION_DENIED, medkg.PermissionDeniedError, 1),
        (grpc.StatusCode.INTERNAL, medkg.ServiceError, 1),
        (grpc.StatusCode.UNKNOWN, medkg.ServiceError, 1),
        (grpc.StatusCode.DATA_LOSS, medkg.ServiceError, 1),
        (grpc.StatusCode.ABORTED, medkg.ServiceError, 1),
        (grpc.StatusCode.CANCELLED, medkg.ServiceError, 1),
        (grpc.StatusCode.UNIMPLEMENTED, medkg.ServiceError, 1),
    ],
)
def test_a_status_becomes_the_exception_of_the_table(
    peer, code: grpc.StatusCode, cls: type[medkg.MedkgError], attempts: int
) -> None:
    peer.failure = (code, "the reason in words")
    client = medkg.EmbeddingClient(address=peer.address, tenant="demo", max_attempts=2, backoff_initial=0.001)
    with pytest.raises(cls) as caught:
        client.models(request_id="order-66")
    error = caught.value
    assert type(error) is cls
    assert (error.code, error.message) == (code.name, "the reason in words")
    assert (error.service, error.method, error.endpoint) == ("EmbeddingService", "ListModels", peer.address)
    assert (error.attempts, error.tenant, error.request_id, error.retryable) == (attempts, "demo", "order-66", False)
    assert len(error.trace_id) == 32
    for part in ("EmbeddingService/ListModels", peer.address, code.name, "the reason in words", "order-66"):
        assert part in str(error)
    assert len(peer.metadata) == attempts
