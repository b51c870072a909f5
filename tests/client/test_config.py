"""A configuration is checked as a whole before anything is sent, and travels."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest

import medkg


@pytest.mark.requirement("isolation 4.3")
@pytest.mark.requirement("isolation 3.3")
@pytest.mark.requirement("isolation 5.3")
def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(medkg.ConfigError) as caught:
        medkg.connect(
            addresses=["localhost:1", "http://ok:1"],
            allow_plaintext=True,
            tenant="not a tenant",
            timeout=-1,
            max_attempts=0,
            backoff_initial=2.0,
            backoff_max=1.0,
            retry_budget=11.0,
            tls=medkg.TlsConfig(cert_file="cert.pem"),
        )
    fields = [field for field, _ in caught.value.field_violations]
    assert fields == [
        "addresses[0]",
        "tls",
        "tls.ca_file",
        "tls.key_file",
        "tenant",
        "timeout",
        "backoff_max",
        "retry_budget",
        "max_attempts",
    ]
    assert all(field in str(caught.value) for field in fields)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timeout", "soon"),
        ("max_attempts", -1),
        ("addresses", "http://127.0.0.1:1"),
        ("tenant", 7),
        ("max_batch_texts", 1.5),
    ],
)
def test_a_value_of_the_wrong_type_is_named(field: str, value: object) -> None:
    with pytest.raises(medkg.ConfigError, match=field) as caught:
        medkg.connect(**{field: value})
    assert [name for name, _ in caught.value.field_violations] == [field]


def test_a_field_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="adress"):
        medkg.connect(adress="http://127.0.0.1:1")


@pytest.mark.parametrize("value", [["redis://:hunter2@h"], b"redis://:hunter2@h", {"url": "hunter2"}])
def test_a_value_that_may_hold_a_password_is_not_repeated(value: Any) -> None:
    with pytest.raises(medkg.ConfigError, match=type(value).__name__) as caught:
        medkg.connect(cache=medkg.CacheConfig(redis=value))
    assert [name for name, _ in caught.value.field_violations] == ["cache.redis"]
    assert "hunter2" not in str(caught.value)


def test_what_is_no_configuration_is_refused() -> None:
    with pytest.raises(TypeError, match=r"address=\.\.\."):
        medkg.connect("http://127.0.0.1:1")  # type: ignore[arg-type]


def test_plaintext_stays_on_the_loopback_unless_it_is_allowed() -> None:
    with pytest.raises(medkg.ConfigError, match=r"https.*allow_plaintext") as caught:
        medkg.connect(addresses=["http://localhost:1", "http://gpu.example.org:1", "http://[::1]:1"])
    assert [name for name, _ in caught.value.field_violations] == ["addresses[1]"]
    medkg.connect(address="http://gpu.example.org:1", allow_plaintext=True).close()


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(medkg.ConfigError) as caught:
        medkg.connect(address="http://me:hunter2@host:1")
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value.field_violations)


def test_a_tls_file_that_is_not_there_is_named_by_the_first_call(tmp_path: Path) -> None:
    missing = tmp_path / "ca.pem"
    services = medkg.connect(address="https://127.0.0.1:1", tenant="demo", tls=medkg.TlsConfig(ca_file=missing))
    with pytest.raises(medkg.ConfigError, match=r"ca\.pem"):
        services.gpu.status()


def test_a_call_without_a_tenant_sends_nothing() -> None:
    with pytest.raises(medkg.ValidationError) as caught:
        medkg.connect(address="http://127.0.0.1:1").gpu.status()
    assert (caught.value.reason, caught.value.attempts) == ("TENANT_MISSING", 0)
    assert caught.value.field_violations[0][0] == "tenant"


def test_a_configuration_is_frozen_and_travels() -> None:
    config = medkg.ClientConfig(
        addresses=("https://a:1", "https://b:2"),
        tenant="demo",
        timeout=3.0,
        tls=medkg.TlsConfig(ca_file=Path("ca.pem")),
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.tenant = "other"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301 - our own
    assert dataclasses.replace(config, timeout=4.0).timeout == 4.0


@pytest.mark.parametrize(
    "make",
    [
        medkg.connect,
        medkg.connect_async,
        medkg.EmbeddingClient,
        medkg.RerankingClient,
        medkg.VectorClient,
        medkg.GpuClient,
        medkg.AsyncEmbeddingClient,
        medkg.AsyncRerankingClient,
        medkg.AsyncVectorClient,
        medkg.AsyncGpuClient,
    ],
)
def test_clients_travel_as_their_configuration(make: type) -> None:
    config = medkg.ClientConfig(address="http://127.0.0.1:1", tenant="demo")
    client = make(config)
    for twin in (pickle.loads(pickle.dumps(client)), copy.deepcopy(client)):  # noqa: S301 - our own
        assert type(twin) is type(client)
        assert twin.config == config
    assert "http://127.0.0.1:1" in repr(client)


def test_fields_by_name_change_a_configuration() -> None:
    config = medkg.ClientConfig(address="http://127.0.0.1:1", tenant="demo")
    assert medkg.connect(config, tenant="other").config == medkg.ClientConfig(
        address="http://127.0.0.1:1", tenant="other"
    )


def test_a_closed_client_says_so() -> None:
    with medkg.connect(address="http://127.0.0.1:1", tenant="demo") as services:
        pass
    with pytest.raises(medkg.MedkgError, match="closed"):
        services.gpu.status()


def test_type_checkers_see_every_field_as_a_keyword() -> None:
    def written(kind: type) -> dict[str, str]:
        return {name: getattr(hint, "__forward_arg__", hint) for name, hint in kind.__annotations__.items()}

    assert written(medkg.ClientOptions) == written(medkg.ClientConfig)
