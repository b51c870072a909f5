"""Licences of every Python package that the project's interpreter has, from what the packages say of themselves."""

from __future__ import annotations

import re
import sys
from importlib.metadata import distributions
from typing import TYPE_CHECKING

import pytest

from .test_dependencies import allowed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.metadata import PackageMetadata
    from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# What deny.toml has no need of: as permissive as the licences there.
PERMISSIVE = {"MIT-0", "MIT-CMU", "PSF-2.0", "Python-2.0"}
# The Mozilla licence asks for changes of its own files to be published: these are used as they are, and not shipped.
UNCHANGED = {
    "certifi": "MPL-2.0",  # requests, kubernetes
    "orjson": "MPL-2.0",  # pymilvus
    "pathspec": "MPL-2.0",  # mypy
    "tqdm": "MPL-2.0",  # Dagster, docling-slim, huggingface_hub, lancedb
}
# Words of the time before PEP 639; what does not stand here has to be an SPDX expression.
SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD 3-Clause OR Apache-2.0": "BSD-3-Clause OR Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}


def licence(told: PackageMetadata) -> str | None:
    """An SPDX expression, out of the expression, the classifiers or the text; None where nothing is said."""
    if expression := told.get("License-Expression"):
        return expression
    classifiers = [name for name in told.get_all("Classifier") or [] if name.startswith("License :: OSI Approved :: ")]
    names = [name.rpartition(" :: ")[2] for name in classifiers] or [told.get("License") or ""]
    return " AND ".join(f"({SPDX.get(name, name)})" for name in names) if any(names) else None


def violations(packages: dict[str, PackageMetadata], licences: set[str]) -> Iterator[str]:
    """Judge packages by name, and the exceptions that none of them needs."""
    needless = set(UNCHANGED)
    for name, told in packages.items():
        said = licence(told)
        if allowed(said, licences):
            continue
        needless.discard(name)
        if not allowed(said, licences | {UNCHANGED.get(name, "")}):
            yield f"{name} {told['Version']}: licence {said!r} is neither in deny.toml nor in {__name__}"
    yield from (f"{name}: needs no exception in {__name__} any more" for name in sorted(needless))


def installed(lock: Path) -> dict[str, PackageMetadata]:
    """The packages of a lock file that this interpreter has; some are for another version of Python."""
    locked = re.findall(r"^([\w.-]+)==", lock.read_text(encoding="utf-8"), re.MULTILINE)
    here = {re.sub(r"[-_.]+", "-", one.name).lower(): one.metadata for one in distributions()}
    return {name: here[name] for name in locked if name in here}


@pytest.fixture(scope="module")
def licences(repository: Path) -> set[str]:
    """What is permissive enough."""
    deny = tomllib.loads((repository / "deny.toml").read_text(encoding="utf-8"))
    return set(deny["licenses"]["allow"]) | PERMISSIVE


def test_every_package_is_allowed(repository: Path, licences: set[str]) -> None:
    """Judge what is installed."""
    packages = installed(repository / "ops" / "requirements" / "dev.lock")
    assert len(packages) > 100
    found = list(violations(packages, licences))
    assert not found, "\n" + "\n".join(found)


def test_others_are_refused(repository: Path, licences: set[str]) -> None:
    """The rule can fail: for a licence, for none, and for an exception that nobody needs."""
    packages = installed(repository / "ops" / "requirements" / "dev.lock")
    for header, said in (("License-Expression", "MIT AND AGPL-3.0-only"), ("License", "GPL"), ("License", "")):
        told = packages["pytest"]
        for name in ("License-Expression", "License", "Classifier"):
            del told[name]
        told[header] = said
        (refused,) = violations(packages, licences)
        assert refused.startswith("pytest ")
    without = {name: told for name, told in packages.items() if name not in {"pytest", "tqdm"}}
    assert list(violations(without, licences)) == [f"tqdm: needs no exception in {__name__} any more"]
