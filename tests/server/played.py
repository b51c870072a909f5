"""A gpu-server that takes the processor for a GPU which NVML plays: for what a GPU's owner sees, loss included.

It is the crate's test binary (gpu-server/src/service/lost_tests.rs), which ops/dev/test.sh puts beside the server: what
is shipped cannot be told that the processor is a GPU. NVML is a C library with the real one's interface.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from .test_gpu_truth import GIB, Driver

ROOT = Path(__file__).resolve().parents[2]
SERVES = "server::tests::serves_on_a_gpu_that_is_played"
NUMBER = "00000000-0000-0000-0000-000000000001"


class PlayedGpu(Driver):
    """A GPU called `cuda:0`, and others that CUDA shows after it; `binary` is what LocalServer starts."""

    def __init__(self, folder: Path, *, total: int = 80 * GIB, others: dict[str, str] | None = None) -> None:
        """`others` are lines of the state file by UUID; CUDA shows those that are not cut into MIG devices."""
        super().__init__(folder)
        self.total, self.others = total, others or {}
        program = ROOT / "build" / "gpu-server-tests"
        if not program.exists():
            pytest.skip(f"{program} is not there: run `make test`")
        self.used, self.events, self.newest = GIB, 0, 0
        shown = [uuid.partition("-")[2] for uuid, line in self.others.items() if "mig=0" in line]
        self.play("libcuda.so.1", [NUMBER, *shown])
        self.show()
        self.binary = folder / "gpu-server"
        self.binary.write_text(
            "#!/bin/sh\n"
            f"export MEDKG_TEST_NVML={shlex.quote(str(folder / 'libnvidia-ml.so.1'))} MEDKG_TEST_GPU=GPU-{NUMBER}\n"
            f'export LD_LIBRARY_PATH={shlex.quote(str(folder))}"${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"\n'
            'MEDKG_TEST_ARGUMENTS="$(printf "%s\\n" "$@")"\n'
            "export MEDKG_TEST_ARGUMENTS\n"
            f"exec {shlex.join([str(program), '--exact', '--ignored', '--nocapture', SERVES])}\n"
        )
        self.binary.chmod(0o755)

    def show(self) -> None:
        """From now on the GPU is as the attributes say."""
        device = (
            f"device GPU-{NUMBER} bus=00000000:01:00.0 total={self.total} used={self.used} temp=40 cc=9.0 mig=0"
            " parent=- lost=0 ecc=0 util=7 power=70000 name=NVIDIA H100"
        )
        self.play("libnvidia-ml.so.1", [device, *self.others.values(), f"xid {self.events} {self.newest}"])

    def xid(self, number: int) -> None:
        """An event: 79 is a GPU that has fallen off the bus."""
        self.events, self.newest = self.events + 1, number
        self.show()
