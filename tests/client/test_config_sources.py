"""A configuration out of arguments, the environment and files."""

from __future__ import annotations

import dataclasses
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import medkg

if TYPE_CHECKING:
    from collections.abc import Callable

    from medkg.local import LocalServer

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "client.md"
SERVER_GUIDE = GUIDE.with_name("gpu-server.md")

SHARED = {"MEDKG_ALLOW_PLAINTEXT", "MEDKG_REGISTRY_CLUSTER"}
"""Variables that both read."""

EVERYTHING: dict[str, Any] = {
    "addresses": ("https://a:1", "https://b:2"),
    "embedding_addresses": ("https://c:3",),
    "reranking_addresses": ("https://d:4",),
    "vector_addresses": ("https://e:5",),
    "gpu_addresses": ("http://f:6",),
    "allow_plaintext": True,
    "tenant": "demo",
    "timeout": 7.5,
    "connect_timeout": 2.0,
    "max_attempts": 3,
    "backoff_initial": 0.1,
    "backoff_max": 1.5,
    "retry_budget": 0.25,
    "breaker_failures": 6,
    "breaker_cooldown": 4.0,
    "name_server": "10.0.0.2:53",
    "max_connections": 2,
    "max_pending": 100,
    "max_connection_age": 600.0,
    "hedge_after": 0.5,
    "max_batch_texts": 64,
    "max_batch_bytes": 1000000,
    "max_batch_tokens": 5000,
    "max_concurrent_batches": 2,
    "tls": {"ca_file": "/ca.pem", "cert_file": "/c.pem", "key_file": "/k.pem", "server_name": "gpu"},
    "cache": {"memory_bytes": 1000, "ttl": 60.0, "redis": "redis://127.0.0.1:1"},
    "fallback": {"addresses": ("https://g:7",), "stale_cache": True, "dense_order": True},
    "coalesce": {"max_wait": 0.5, "max_texts": 8},
}
"""Every field, with values that are no defaults. `address` and `registry` exclude `addresses`."""


def everything() -> medkg.ClientConfig:
    tls = {name: value if name == "server_name" else Path(value) for name, value in EVERYTHING["tls"].items()}
    groups = {
        "tls": medkg.TlsConfig(**tls),
        "cache": medkg.CacheConfig(**EVERYTHING["cache"]),
        "fallback": medkg.FallbackConfig(**EVERYTHING["fallback"]),
        "coalesce": medkg.CoalesceConfig(**EVERYTHING["coalesce"]),
    }
    return medkg.ClientConfig(**{**EVERYTHING, **groups})


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value) if isinstance(value, tuple) else repr(value) if isinstance(value, str) else value)


def yaml(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else toml(value)


def written(kind: str) -> str:
    """All fields as a file."""
    lines = []
    for key, value in EVERYTHING.items():
        if kind == "toml":
            table = isinstance(value, dict)
            lines += [f"[{key}]"] if table else []
            lines += [f"{name} = {toml(inner)}" for name, inner in (value if table else {key: value}).items()]
        elif isinstance(value, dict):
            lines += [f"{key}:", *(f"  {name}: {yaml(inner)}" for name, inner in value.items())]
        else:
            lines.append(f"{key}: {yaml(value)}")
    return "\n".join(lines)


def fields(error: pytest.ExceptionInfo[medkg.ConfigError]) -> list[str]:
    return [field for field, _ in error.value.field_violations]


def test_the_list_here_is_complete() -> None:
    names = {field.name for field in dataclasses.fields(medkg.ClientConfig)}
    assert set(EVERYTHING) == names - {"address", "registry"}
    assert set(EVERYTHING["tls"]) == {field.name for field in dataclasses.fields(medkg.TlsConfig)}
    assert set(EVERYTHING["cache"]) == {field.name for field in dataclasses.fields(medkg.CacheConfig)}
    assert set(EVERYTHING["fallback"]) == {field.name for field in dataclasses.fields(medkg.FallbackConfig)}
    assert set(EVERYTHING["coalesce"]) == {field.name for field in dataclasses.fields(medkg.CoalesceConfig)}


@pytest.mark.requirement("isolation 4.3")
@pytest.mark.requirement("isolation 3.3")
@pytest.mark.parametrize("kind", ["toml", "yaml"])
def test_every_field_can_be_given_in_a_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"medkg.{kind}"
    path.write_text(written(kind))
    config = medkg.ClientConfig.load(path, env=False)
    assert config == everything()
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301 - our own
    assert hash(config) == hash(everything())
    assert "redis" not in repr(config)


def test_every_field_can_be_given_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in EVERYTHING.items():
        parts = value if isinstance(value, dict) else {"": value}
        for name, part in parts.items():
            text = ",".join(part) if isinstance(part, tuple) else str(part)
            monkeypatch.setenv("_".join(filter(None, ["MEDKG", key, name])).upper(), text)
    assert medkg.ClientConfig.load() == everything()
    assert medkg.connect().config == everything()
    monkeypatch.delenv("MEDKG_ADDRESSES")
    monkeypatch.setenv("MEDKG_ADDRESS", "https://one:1")
    assert medkg.ClientConfig.load().address == "https://one:1"
    monkeypatch.delenv("MEDKG_ADDRESS")
    monkeypatch.setenv("MEDKG_REGISTRY_REDIS", "redis://127.0.0.1:1")
    monkeypatch.setenv("MEDKG_REGISTRY_CLUSTER", "blue")
    registry = medkg.RegistryConfig(redis="redis://127.0.0.1:1", cluster="blue")
    assert medkg.ClientConfig.load().registry == registry


def test_arguments_are_stronger_than_variables_and_those_than_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "medkg.yaml"
    path.write_text("tenant: file\ntimeout: 1\nmax_attempts: 2\ntls: {ca_file: ca.pem}\naddress: https://a:1\n")
    monkeypatch.setenv("MEDKG_CONFIG", str(path))
    monkeypatch.setenv("MEDKG_TENANT", "variable")
    monkeypatch.setenv("MEDKG_TIMEOUT", "2")
    config = medkg.ClientConfig.load(tenant="argument")
    assert (config.tenant, config.timeout, config.max_attempts) == ("argument", 2.0, 2)
    assert config.tls == medkg.TlsConfig(ca_file=tmp_path / "ca.pem")
    config = medkg.ClientConfig.load(path, env=False)
    assert (config.tenant, config.timeout) == ("file", 1.0)
    assert medkg.ClientConfig.load(env=False) == medkg.ClientConfig()
    with medkg.connect(address="https://b:2") as services:
        assert (services.config.address, services.config.tenant) == ("https://b:2", "variable")


def test_a_configuration_that_is_given_is_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDKG_TENANT", "variable")
    monkeypatch.setenv("MEDKG_ADDRESS", "http://127.0.0.1:9")
    config = medkg.ClientConfig(tenant="mine")
    for made in (medkg.connect(config), medkg.EmbeddingClient(config), medkg.connect_async(config)):
        assert made.config == config
        assert pickle.loads(pickle.dumps(made)).config == config  # noqa: S301 - our own
    travelled = pickle.loads(pickle.dumps(medkg.connect()))  # noqa: S301 - our own
    monkeypatch.setenv("MEDKG_TENANT", "later")
    assert travelled.config.tenant == "variable", "it travels with what it was made of"


@pytest.mark.requirement("isolation 5.3")
def test_every_problem_of_every_source_is_listed_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "medkg.toml"
    path.write_text("adress = 'x'\ntimeout = -1\n[cache]\nredis = 'amqp://:hunter2@h'\nttl = 'hunter2'\n")
    monkeypatch.setenv("MEDKG_MAX_ATTEMPTS", "many")
    monkeypatch.setenv("MEDKG_TIMEOT", "1")
    monkeypatch.setenv("MEDKG_ADDRESS", "http://gpu:1")
    wrong: Any = "soon"
    with pytest.raises(medkg.ConfigError) as caught:
        medkg.ClientConfig.load(path, connect_timeout=wrong, backoff_max=-1.0)
    in_file = {f"{path}: {key}" for key in ("adress", "timeout", "cache.redis", "cache.ttl")}
    variables = {"MEDKG_MAX_ATTEMPTS", "MEDKG_TIMEOT", "MEDKG_ADDRESS"}
    assert set(fields(caught)) == in_file | variables | {"connect_timeout", "backoff_max"}
    assert len(fields(caught)) == 9
    text = str(caught.value)
    assert "did you mean address?" in text
    assert "did you mean MEDKG_TIMEOUT?" in text
    assert "hunter2" not in text
    with pytest.raises(medkg.ConfigError, match="MEDKG_TIMEOT"):
        medkg.connect(tenant="demo")


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("medkg.toml", "timeout = 1\ntenant = 'hunter2\n", "line 2"),
        ("medkg.yaml", "timeout: 1\ntenant: 'hunter2\n", "YAML"),
        ("medkg.yaml", "tenant: hunter2\ntenant: hunter2\n", "line 2"),
        ("medkg.json", "{}", r"\.toml, \.yaml or \.yml"),
        ("medkg.yaml", "- hunter2", "a list"),
        ("medkg.toml", None, "No such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_not_repeated(
    name: str, text: str | None, wanted: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(medkg.ConfigError, match=wanted) as caught:
        medkg.ClientConfig.load(path, env=False)
    assert fields(caught) == [str(path)]
    assert "hunter2" not in str(caught.value)


def test_what_the_server_reads_is_no_misspelling_of_what_the_client_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set(re.findall(r"`(MEDKG_\w+)`", SERVER_GUIDE.read_text())) - SHARED
    assert len(names) > 20
    for name in names:
        monkeypatch.setenv(name, "x")
    assert medkg.ClientConfig.load() == medkg.ClientConfig()


def test_the_guide_lists_every_field() -> None:
    names = [field.name for field in dataclasses.fields(medkg.ClientConfig)]
    table = "\n".join(line for line in GUIDE.read_text().splitlines() if line.startswith("| `"))
    assert [name for name in names if f"`{name}`" not in table] == []


def test_a_whole_program_is_configured_from_outside(
    server: LocalServer, script: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "medkg.toml"
    path.write_text(f"address = '{server.address}'\ntenant = 'demo'\n")
    monkeypatch.setenv("MEDKG_CONFIG", str(path))
    done = script("import medkg; print(medkg.connect().gpu.status().state)").finish()
    assert done.out.split() == ["ready"], done.err
