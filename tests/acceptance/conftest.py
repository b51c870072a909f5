"""What every acceptance test stands on: one deployment, its clients, and what it says of itself at the end.

Tests use the public Python API only and depend on no local file, so that they run against any deployment.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import medkg

from . import deployment as deployments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .deployment import Deployment

HERE = Path(__file__).parent
ABOUT_THE_OPTION = HERE / "test_option.py"

_deployment = pytest.StashKey["Deployment | None"]()
_facts = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Read FILE at once: a mistake in it is told before any test runs."""
    config.stash[_facts] = {}
    path = config.getoption("--medkg-config")
    try:
        config.stash[_deployment] = deployments.read(Path(path)) if path else None
    except deployments.DeploymentError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the tests of the option itself where it is used: they need the local build."""
    return True if config.stash[_deployment] and collection_path == ABOUT_THE_OPTION else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was looked at and whether it is accepted; with xdist, only the workers know."""
    if not config.stash[_deployment]:
        return
    outcomes = ("passed", "failed", "error", "skipped")
    counts = {outcome: len(terminalreporter.getreports(outcome)) for outcome in outcomes}
    accepted = counts["passed"] and not counts["failed"] and not counts["error"]
    terminalreporter.section("acceptance")
    for name, value in config.stash[_facts].items():
        terminalreporter.line(f"{name:<18}{value}")
    verdict = "accepted" if accepted else "NOT ACCEPTED"
    numbers = ", ".join(f"{number} {outcome}" for outcome, number in counts.items() if number)
    terminalreporter.line(f"{'verdict':<18}{verdict} ({numbers})", green=bool(accepted), red=not accepted)


@pytest.fixture(scope="session")
def deployment(request: pytest.FixtureRequest) -> Deployment:
    """The deployment under test; it has to answer, or nothing else is tried."""
    found = request.config.stash[_deployment]
    if found is None:
        return deployments.local(request.getfixturevalue("server").address)
    facts = request.config.stash[_facts]
    facts |= {"configuration": found.source, "addresses": found.addresses, "tenant": str(found.config.tenant)}
    try:
        _ask(found, facts)
    except medkg.MedkgError as error:
        pytest.exit(
            f"{found.addresses} (from {found.source}) does not answer: {error}\n"
            "Check that gpu-server runs there with that role (--services), that the address and, with https, the files "
            "under [tls] are right, and that this machine reaches it. Then run the suite again.",
            returncode=pytest.ExitCode.TESTS_FAILED,
        )
    return found


def _ask(found: Deployment, facts: dict[str, str]) -> None:
    """Ask for what tells whom one speaks to, with the smallest call of each role."""
    with medkg.connect(found.config) as services:
        if "gpu" in found.roles:
            status = services.gpu.status()
            facts["server"] = f"gpu-server {status.server_version}, {status.state}"
            facts["device"] = status.active_device or f"none: {status.detail}"
        for role in ("embedding", "reranking"):
            if role in found.roles:
                models = getattr(services, role).models()
                facts[f"{role} models"] = ", ".join(f"{model.name} ({model.digest[:12]})" for model in models)
        if "vector" in found.roles:
            services.vector.collections()


@pytest.fixture(scope="session")
def services(deployment: Deployment) -> Iterator[medkg.Services]:
    """The clients of the deployment."""
    with medkg.connect(deployment.config) as connected:
        yield connected


@pytest.fixture(scope="module", autouse=True)
def _role_is_accepted(request: pytest.FixtureRequest, deployment: Deployment) -> None:
    """Skip, visibly, what FILE says that the deployment does not serve; a module names what it needs."""
    needed = getattr(request.module, "ROLES_NEEDED", ())
    if missing := [role for role in needed if role not in deployment.roles]:
        pytest.skip(f"{deployment.source} leaves out {', '.join(missing)} ([acceptance] roles)")


@pytest.fixture
def new_collection(services: medkg.Services) -> Iterator[Callable[..., str]]:
    """Makes collections of names that nothing else has; all are dropped at the end."""
    made: list[tuple[str, str | None]] = []

    def make(dimension: int, metric: str = "cosine", tenant: str | None = None) -> str:
        name = f"acceptance-{uuid.uuid4().hex}"
        made.append((name, tenant))
        created = services.vector.create_collection(name, dimension, metric, tenant=tenant)
        assert created.created
        return name

    yield make
    for name, tenant in made:
        with suppress(medkg.CollectionNotFoundError):  # the test dropped it itself
            services.vector.drop_collection(name, tenant=tenant)
