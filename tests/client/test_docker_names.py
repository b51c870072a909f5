"""Servers that Docker's own DNS knows: containers that share an alias, as `docker compose up --scale` makes them.

No image is pulled: the containers see this machine's programs and the clone, read-only.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import medkg
from tests.server.authority import Authority
from tests.server.checkpoints import write_bert

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ALIAS, PORT = "gpu", 7070
PATIENCE = 120.0
LIFE = "600"
# Calls from four threads until the file is there; each line tells of the calls so far, and who answered the last ones.
CALLER = f"""
import json, pathlib, sys, threading, time
import medkg

folder = pathlib.Path(sys.argv[1])
tls = medkg.TlsConfig(ca_file=sys.argv[2], cert_file=sys.argv[3], key_file=sys.argv[4])
client = medkg.EmbeddingClient(address="dns+https://{ALIAS}:{PORT}", tenant="docker", timeout=30, tls=tls)
answers, errors, done = [], [], folder / "done"

def call():
    while not done.exists():
        try:
            answers.append(client.embed(["Aspirin inhibits platelet aggregation."], model="tiny").model_digest)
        except medkg.MedkgError as error:
            errors.append(f"{{type(error).__name__}}: {{error}}")

threads = [threading.Thread(target=call) for _ in range(4)]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    time.sleep(0.2)
    told = {{"calls": len(answers), "errors": errors[:3], "recent": sorted(set(answers[-100:]))}}
    print(json.dumps(told), flush=True)
"""


def docker(*arguments: str) -> str:
    """What a docker command that succeeds prints."""
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(["docker", *arguments], **streams, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout}"
    return done.stdout.strip()


class Network:
    """A network of its own, and what runs on it."""

    def __init__(self, folder: Path, mounts: list[Path]) -> None:
        self.name = f"medkg-{uuid.uuid4().hex[:12]}"
        self._folder, self._containers = folder, 0
        self._mounts = [part for path in mounts for part in ("--volume", f"{path}:{path}:ro")]
        empty = subprocess.run(["tar", "--create", "--files-from", os.devnull], stdout=subprocess.PIPE, check=True)
        subprocess.run(["docker", "import", "-", self.name], input=empty.stdout, capture_output=True, check=True)
        try:
            docker("network", "create", self.name)
        except AssertionError:
            self.remove()
            raise

    def command(self, *arguments: str, run: tuple[str, ...] = ()) -> list[str]:
        """`docker run` for a program of this machine, in a container `NETWORK-NUMBER`."""
        self._containers += 1
        name = f"{self.name}-{self._containers}"
        settings = ("--rm", "--name", name, "--network", self.name, *self._mounts)
        variables = (f"{key}={os.environ[key]}" for key in ("LD_LIBRARY_PATH",) if key in os.environ)
        named = (part for variable in variables for part in ("--env", variable))
        # Whoever ends this process leaves nothing that runs for long.
        return [
            "docker",
            "run",
            *settings,
            *named,
            *run,
            self.name,
            "/usr/bin/timeout",
            "--foreground",
            LIFE,
            *arguments,
        ]

    def serve(self, binary: Path, *arguments: str) -> str:
        """Starts one more server behind the alias; its container's name."""
        command = self.command(str(binary), *arguments, run=("--detach", "--network-alias", ALIAS))
        docker(*command[1:])
        name, deadline, log = f"{self.name}-{self._containers}", time.monotonic() + PATIENCE, ""
        while "model ready" not in log:
            assert time.monotonic() < deadline, log
            time.sleep(0.1)
            log = docker("logs", name)
        return name

    def remove(self) -> None:
        """Ends everything on it, and itself."""
        subprocess.run(
            ["docker", "rm", "--force", *(f"{self.name}-{number + 1}" for number in range(self._containers))],
            capture_output=True,
            check=False,
        )
        for what in (("network", "rm"), ("image", "rm")):
            subprocess.run(["docker", *what, self.name], capture_output=True, check=False)


@pytest.fixture
def network(gpu_server_binary: Path, tmp_path: Path) -> Iterator[Network]:
    """A network in Docker; without an engine the test is skipped."""
    engine = ["docker", "info"]
    if shutil.which("docker") is None or subprocess.run(engine, capture_output=True, check=False).returncode:
        pytest.skip("no Docker engine answers `docker info`: start one, or run this where there is one")
    libraries = Path(os.environ["LIBTORCH"]).resolve().parents[3]
    system = [Path(path) for path in ("/usr", "/lib", "/lib64", "/bin") if Path(path).exists()]
    clone = Path(medkg.__file__).resolve().parents[2]
    ours = [Path(sys.base_prefix), Path(sys.prefix), clone, gpu_server_binary.parent, libraries, tmp_path]
    outside = [path for path in dict.fromkeys(ours) if not path.is_relative_to("/usr")]
    made = Network(tmp_path, [*system, *outside])
    try:
        yield made
    finally:
        made.remove()


class Caller:
    """A client in a container, and what it tells."""

    def __init__(self, network: Network, folder: Path, files: list[Path]) -> None:
        self._done = folder / "done"
        arguments = (sys.executable, "-c", CALLER, str(folder), *map(str, files))
        self._errors = (folder / "caller.log").open("wb")
        self._process = subprocess.Popen(network.command(*arguments), stdout=subprocess.PIPE, stderr=self._errors)
        self._log = folder / "caller.log"

    def wait_for(self, condition: Callable[[dict[str, Any]], bool], what: str) -> float:
        """Waits until what it tells fulfils a condition; the seconds that took."""
        began = time.monotonic()
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            assert not told["errors"], told["errors"]
            if condition(told):
                return time.monotonic() - began
            assert time.monotonic() < began + PATIENCE, f"{what}: {told}"
        raise AssertionError(self._log.read_text())

    def end(self) -> None:
        """Lets it finish its calls."""
        self._done.touch()
        told, _ = self._process.communicate(timeout=60)
        self._errors.close()
        assert self._process.returncode == 0, self._log.read_text()
        assert not (errors := json.loads(told.splitlines()[-1])["errors"]), errors


@pytest.mark.requirement("isolation 6.1")
@pytest.mark.fault(
    "Discovery",
    "containers behind one alias of a Docker network are added, stopped and killed under load",
    "no call fails; a new one is used within 30 seconds, although Docker's DNS says 600",
)
def test_containers_that_come_and_go(
    network: Network, gpu_server_binary: Path, minilm_dir: Path, tmp_path: Path, seen: Callable[[str], None]
) -> None:
    authority = Authority(tmp_path, "hospital")
    authority.run("issue", "server", ALIAS, "--dns", ALIAS)
    certificate, key = authority.files(f"server-{ALIAS}")
    demanded = ("--tls-cert", str(certificate), "--tls-key", str(key), "--tls-client-ca", str(authority.certificate))
    names: dict[str, str] = {}

    def serve() -> str:
        """One more server; the digest of its model."""
        model = write_bert(tmp_path / f"model-{len(names)}", minilm_dir, seed=len(names))
        settings = ("--services", "embedding", "--device", "cpu", "--dtype", "f32", "--threads", "1")
        model_flags = ("--embedding-model", f"tiny={model.folder}", "--listen", f"[::]:{PORT}")
        names[model.digest] = network.serve(gpu_server_binary, *settings, *model_flags, *demanded)
        return model.digest

    first, second = serve(), serve()
    folder = tmp_path / "caller"
    folder.mkdir()
    caller = Caller(network, folder, [authority.certificate, *authority.client("docker")])
    try:
        caller.wait_for(lambda told: told["recent"] == sorted((first, second)), "both are used")
        third = serve()
        took = caller.wait_for(lambda told: third in told["recent"], "a new one is found")
        docker("stop", "--time", "30", names[first])
        caller.wait_for(lambda told: told["recent"] == sorted((second, third)), "a stopped one is left out")
        docker("kill", names[second])
        caller.wait_for(lambda told: told["recent"] == [third], "a killed one is left out")
        fourth = serve()
        caller.wait_for(lambda told: told["recent"] == sorted((third, fourth)), "one that takes its place is found")
    finally:
        caller.end()
    seen(f"added, stopped, killed, replaced: no call failed; the new one was used after {took:.0f} s")
