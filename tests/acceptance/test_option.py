"""`--medkg-config FILE` chooses the deployment: the server that FILE names is asked, and a bad FILE says what is wrong.

Left out where the option is given: these tests start servers of the local build.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import medkg

from . import deployment

if TYPE_CHECKING:
    from collections.abc import Callable

    from medkg.local import LocalServer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def accept(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the suite as an operator does, with FILE's text; further arguments choose tests."""

    def run(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "deployment.toml"
        file.write_text(text, "utf-8")
        # No build on this machine may be needed, nor the outer run's settings.
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MEDKG_", "PYTEST_"))}
        environment["MEDKG_GPU_SERVER"] = str(tmp_path / "no-gpu-server-here")
        command = [sys.executable, "-m", "pytest", "tests/acceptance", "--medkg-config", str(file), *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    return run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_server_that_the_file_names_is_accepted(
    start_server: Callable[..., LocalServer],
    minilm_dir: Path,
    accept: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """The whole suite, against a server of its own whose embedding model has another name."""
    roles = ("gpu", "embedding", "vector")
    server = start_server(services=roles, embedding_models={"only-there": minilm_dir}, reranking_models={})
    done = accept(
        f'address = "{server.address}"\ntenant = "ward-7"\n'
        '[acceptance]\ndevice = "cpu"\nroles = ["gpu", "embedding", "vector"]\nembedding_model = "only-there"\n',
        "-q",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for told in (server.address, "ward-7", "only-there", "cpu", "accepted ("):
        assert told in done.stdout
    assert "leaves out reranking" in done.stdout
    assert "test_option" not in done.stdout
    with medkg.connect(address=server.address, tenant="ward-7") as services:
        assert services.vector.collections() == []


def test_another_device_than_the_expected_one_is_not_accepted(
    server: LocalServer, accept: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = accept(f'address = "{server.address}"\n[acceptance]\ndevice = "cuda"\n', "-k", "expected_one", "-q")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "computes on cpu, but [acceptance] device is cuda" in done.stdout
    assert "NOT ACCEPTED" in done.stdout


def test_where_nothing_listens_the_address_is_named_once(
    accept: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    done = accept(f'address = "{address}"\n')
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert said.count("does not answer") == 1
    assert f"{address} (from " in said
    assert "Check that gpu-server runs there" in said
    assert "NOT ACCEPTED" in said


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("address = ", "no valid TOML"),
        ('adress = "http://127.0.0.1:1"\n', "adress: unknown. Known: address,"),
        ('address = "http://127.0.0.1:1"\n[acceptance]\ndevise = "cuda"\n', "[acceptance] devise: unknown"),
        ('address = "http://127.0.0.1:1"\n[acceptance]\nroles = ["gpus"]\n', "gpus: unknown. Known: gpu,"),
        ('address = "http://127.0.0.1:1"\n[tls]\nca = "x"\n', "[tls] ca: unknown. Known: ca_file"),
        ("timeout = 5\n", "names no server. Add address ="),
        ('address = "not an address"\n', "address"),
    ],
    ids=["no-toml", "key", "acceptance-key", "role", "tls-key", "no-address", "bad-address"],
)
def test_what_is_wrong_in_the_file_is_said(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "deployment.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(deployment.DeploymentError, match=re.escape(told)) as caught:
        deployment.read(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_a_file_that_cannot_be_used_ends_the_run_before_any_test(
    accept: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = accept('adress = "http://127.0.0.1:1"\n')
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout + done.stderr
    assert "deployment.toml: adress: unknown. Known: address," in done.stderr
    assert "passed" not in done.stdout


def test_the_file_says_what_the_clients_get(tmp_path: Path) -> None:
    file = tmp_path / "deployment.toml"
    file.write_text(
        'addresses = ["https://a.example:1", "https://b.example:2"]\nvector_addresses = ["https://c.example:3"]\n'
        'tenant = "ward-7"\nmax_attempts = 2\n[tls]\nca_file = "ca.pem"\nserver_name = "gpu.example"\n'
        '[acceptance]\ndevice = "cuda:1"\nother_tenant = "ward-8"\n',
        "utf-8",
    )
    found = deployment.read(file)
    assert found.config == medkg.ClientConfig(
        addresses=["https://a.example:1", "https://b.example:2"],
        vector_addresses=["https://c.example:3"],
        tenant="ward-7",
        timeout=deployment.TIMEOUT,
        max_attempts=2,
        tls=medkg.TlsConfig(ca_file=tmp_path / "ca.pem", server_name="gpu.example"),
    )
    assert (found.device, found.other_tenant, found.roles) == ("cuda:1", "ward-8", deployment.ROLES)
    assert found.addresses == "https://a.example:1, https://b.example:2, https://c.example:3"


def test_the_example_in_the_readme_is_a_file_that_can_be_used(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.+?)```", (Path(__file__).parent / "README.md").read_text("utf-8"), re.DOTALL)
    file = tmp_path / "deployment.toml"
    file.write_text(example, "utf-8")
    found = deployment.read(file)
    assert found.config.tenant == deployment.TENANT
    assert found.config.timeout == deployment.TIMEOUT
    assert found.other_tenant == f"{deployment.TENANT}-other"
    assert found.device == "cuda"
