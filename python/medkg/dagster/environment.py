"""How a project reaches gpu-server in development, in staging and in production: a TOML file for each.

The files are the client's own (docs/guides/client.md): the environment's `MEDKG_*` variables are stronger, and
`medkg config check` reads them too. What differs is what is refused.

| | dev | staging | prod |
|---|---|---|---|
| no address said | a server on the CPU is started | refused | refused |
| plaintext | as the client has it | as the client has it | refused, to this machine and to Redis too |
| a server that computes on a CPU | served | served | refused by each step |
| no identity, no deadline, no models named | defaults | defaults | refused |
"""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import tomlkit
from tomlkit.exceptions import TOMLKitError

from medkg.config import ClientConfig
from medkg.dagster.connection import GROUPS
from medkg.dagster.dev_server import dev_server_address
from medkg.dagster.resource import GpuServicesResource
from medkg.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from os import PathLike

Environment: TypeAlias = Literal["dev", "staging", "prod"]
ENVIRONMENTS: Final[tuple[Environment, ...]] = ("dev", "staging", "prod")

_ADDRESSES: Final = ("addresses", "embedding_addresses", "reranking_addresses", "vector_addresses", "gpu_addresses")
_ENCRYPTED: Final = ("https://", "dns+https://", "srv+https://")
_MODELS: Final = ("embedding_model", "reranking_model")

Problem: TypeAlias = "tuple[str, str]"
"""Where it is, and what is wrong."""


def services_of(
    env: Environment, folder: str | PathLike[str] | None = None, *, pipeline: Mapping[str, Any] | None = None
) -> GpuServicesResource:
    """The resource of an environment.

    Args:
        env: Which one.
        folder: Where `dev.toml`, `staging.toml` and `prod.toml` are. None: `MEDKG_CONFIG` and the environment alone.
        pipeline: The arguments of `medkg_assets`, of which prod wants the models named.

    Raises:
        medkg.ConfigError: The environment is unknown or cannot be used as it is; every problem is listed.
        medkg.local.LocalServerError: The server of `dev` did not start.
    """
    if env not in ENVIRONMENTS:
        msg = f"env: there is no such environment; use {', '.join(ENVIRONMENTS)}"
        raise ConfigError(msg, field_violations=[("env", msg)])
    path = None if folder is None else Path(folder) / f"{env}.toml"
    if env == "dev" and path is not None and not path.exists():
        path = None
    problems: list[Problem] = []
    try:
        config = ClientConfig.load(path)
    except ConfigError as error:
        problems += error.field_violations
        config = _readable(path)
    if env == "dev" and not problems and _is_silent_on_servers(config):
        address, missing = dev_server_address()
        config = replace(config, address=address)
        problems += missing
    if env != "dev":
        problems += _without_servers(config)
    if env == "prod":
        problems += [*_plaintext(config), *_unsaid(config, pipeline or {})]
    if problems:
        listed = "".join(f"\n  {place}: {problem}" for place, problem in problems)
        msg = f"the environment {env!r} cannot be used: {len(problems)} problem(s){listed}"
        raise ConfigError(msg, field_violations=problems)
    return GpuServicesResource.of(config, require_gpu=env == "prod")


def _is_silent_on_servers(config: ClientConfig) -> bool:
    return not any(getattr(config, name) for name in ("address", "registry", *_ADDRESSES))


def _without_servers(config: ClientConfig) -> Iterator[Problem]:
    general = config.address or config.addresses or config.registry
    if not general and not all(getattr(config, name) for name in _ADDRESSES[1:]):
        yield "address", "say where the servers are: address, addresses, registry, or the addresses of each service"


def _plaintext(config: ClientConfig) -> Iterator[Problem]:
    addressed: list[tuple[str, object]] = [("address", config.address)]
    lists = [(name, getattr(config, name)) for name in _ADDRESSES]
    lists.append(("fallback.addresses", config.fallback and config.fallback.addresses))
    for name, addresses in lists:
        addressed += [(f"{name}[{place}]", address) for place, address in enumerate(_listed(addresses))]
    for place, address in addressed:
        if address is not None and not str(address).startswith(_ENCRYPTED):
            yield place, "is plaintext: write https://"
    if config.allow_plaintext:
        yield "allow_plaintext", "is set: take it out"
    for name, group in (("registry", config.registry), ("cache", config.cache)):
        if group is not None and str(group.redis or "").startswith("redis://"):
            yield f"{name}.redis", "is plaintext: write rediss:// or unix://"


def _unsaid(config: ClientConfig, pipeline: Mapping[str, Any]) -> Iterator[Problem]:
    for name in ("ca_file", "cert_file", "key_file"):
        if config.tls is None or not getattr(config.tls, name):
            yield f"tls.{name}", "is not said: servers and this worker prove who they are to each other"
    if config.timeout is None:
        yield "timeout", "is not said: name the seconds that a request may take"
    for name in _MODELS:
        if not pipeline.get(name):
            yield name, "is not said: another default of the server would give other vectors and scores"


def _listed(addresses: object) -> Sequence[object]:
    return addresses if isinstance(addresses, (list, tuple)) else []


def _readable(path: Path | None) -> ClientConfig:
    """What can be read of a configuration that has problems, so that the others are told at once too.

    Nothing is made of it. Values are as they were written.
    """
    try:
        written: dict[str, Any] = {} if path is None else tomlkit.parse(path.read_text(encoding="utf-8")).unwrap()
    except (OSError, UnicodeDecodeError, TOMLKitError):
        written = {}

    def read(names: type[Any], table: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        found = {field.name: table.get(field.name) for field in fields(names)}
        for name in found:
            if variable := os.environ.get(f"MEDKG_{prefix}{name}".upper()):
                found[name] = variable.split(",") if name.endswith("addresses") else variable
        return found

    said = read(ClientConfig, written, "")
    for name, group in GROUPS.items():
        table = written.get(name)
        values = read(group, table if isinstance(table, dict) else {}, f"{name}_")
        said[name] = group(**values) if any(values.values()) else None
    return ClientConfig(**said)
