"""The deployment that is to be accepted: read from FILE, or the local build.

What it is: FILE (TOML) to a `Deployment`. Why this way: the keys at the top are `medkg.ClientConfig`'s own, so that an
operator writes what the pipeline's configuration says. What it refuses: a key it does not know, since a misspelt
`expected_device` would be a check that silently does not happen.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import medkg

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ROLES = ("gpu", "embedding", "reranking", "vector")
TENANT = "medkg-acceptance"
TIMEOUT = 120.0
"""Seconds for one request, where FILE names none: a small machine may be slow, and is accepted for its answers."""


class DeploymentError(Exception):
    """FILE cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Deployment:
    """What is accepted, and what is expected of it."""

    config: medkg.ClientConfig
    source: str
    """Where the configuration comes from."""
    device: str | None = None
    """The device that has to compute: `cpu`, `cuda` (any) or `cuda:N`; None expects nothing."""
    embedding_model: str | None = None
    """The model to accept; None means the server's default."""
    reranking_model: str | None = None
    other_tenant: str = ""
    """A second tenant, which must not see what the first one stores."""
    roles: tuple[str, ...] = ROLES

    @property
    def addresses(self) -> str:
        """Give every address of the configuration, for messages."""
        config = self.config
        found: list[str] = [config.address] if config.address else []
        for more in (config.addresses, *(getattr(config, f"{role}_addresses") for role in ROLES)):
            found += more or ()
        return ", ".join(dict.fromkeys(found))


def local(address: str) -> Deployment:
    """Make the deployment of the local build: the CPU, every role."""
    config = medkg.ClientConfig(address=address, tenant=TENANT, timeout=TIMEOUT)
    return Deployment(config, source="the local build", device="cpu", other_tenant=f"{TENANT}-other")


def read(path: Path) -> Deployment:
    """Read FILE.

    Raises:
        DeploymentError: It is not there, no TOML, or has a key or value that cannot be used.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DeploymentError(f"{path}: {error.strerror}. Give --medkg-config a TOML file.") from error
    except ValueError as error:
        raise DeploymentError(f"{path}: no valid TOML: {error}.") from error
    tls = _sub_table(path, table, "tls", _names(medkg.TlsConfig))
    expected = _sub_table(path, table, "acceptance", [*_names(Deployment, but={"config", "source"})])
    _only(path, "", table, _names(medkg.ClientConfig, but={"tls"}))
    for key in ("ca_file", "cert_file", "key_file"):
        if key in tls:
            tls[key] = path.parent / str(tls[key])
    roles = tuple(expected.pop("roles", ROLES))
    _only(path, "[acceptance] roles, ", roles, ROLES)
    try:
        config = medkg.ClientConfig(**{"tenant": TENANT, "timeout": TIMEOUT, **table})
        if tls:
            config = replace(config, tls=medkg.TlsConfig(**tls))
        medkg.connect(config).close()
    except (medkg.ConfigError, TypeError) as error:
        raise DeploymentError(f"{path}: {error}") from error
    expected = {"other_tenant": f"{config.tenant}-other", **expected}
    deployment = Deployment(config, source=str(path), roles=roles, **expected)
    if not deployment.addresses:
        raise DeploymentError(f'{path}: names no server. Add address = "https://HOST:PORT".')
    return deployment


def _names(kind: Any, but: Iterable[str] = ()) -> list[str]:
    return [field.name for field in fields(kind) if field.name not in set(but)]


def _sub_table(path: Path, table: dict[str, Any], name: str, known: Iterable[str]) -> dict[str, Any]:
    found = table.pop(name, {})
    if not isinstance(found, dict):
        raise DeploymentError(f"{path}: {name} is no table. Write [{name}] on a line of its own.")
    _only(path, f"[{name}] ", found, known)
    return found


def _only(path: Path, where: str, keys: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for key in keys:
        if key not in known:
            raise DeploymentError(f"{path}: {where}{key}: unknown. Known: {', '.join(known)}.")
