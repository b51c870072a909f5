"""What the server tells of GPUs, on machines that have none.

NVML and the CUDA driver are reached through their libraries, as in production: tests/server/nvml holds C libraries with
the same interfaces, which play what a file says. How the loss of a GPU is met while calls run is in the tests of the
crate (gpu-server/src/server_tests.rs).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

import medkg

from .conftest import TENANT

if TYPE_CHECKING:
    from collections.abc import Callable

    from medkg.local import LocalServer

SOURCES = Path(__file__).parent / "nvml"
GPU = "GPU-{0:08d}-0000-0000-0000-000000000000"
MIG = "MIG-{0:08d}-0000-0000-0000-000000000000"
GIB = 2**30


class Driver:
    """A driver made of two libraries in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler is installed")
        for source, name in (("nvml.c", "libnvidia-ml.so.1"), ("cuda.c", "libcuda.so.1")):
            command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, SOURCES / source]
            subprocess.run(command, check=True, timeout=60)

    def play(self, library: str, lines: list[str]) -> None:
        new = self.folder / "new"
        new.write_text("".join(f"{line}\n" for line in lines))
        new.rename(self.folder / f"{library}.state")

    @property
    def env(self) -> dict[str, str]:
        return {"LD_LIBRARY_PATH": f"{self.folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"}


def gpu(
    uuid: str,
    *,
    temp: int = 40,
    mig: int = 0,
    parent: str = "-",
    gib: int = 80,
    ecc: int = 0,
    name: str = "NVIDIA H100",
) -> str:
    bus = f"00000000:0{uuid[11]}:00.0"
    return (
        f"device {uuid} bus={bus} total={gib * GIB} used={GIB} temp={temp} cc=9.0 mig={mig} parent={parent}"
        f" lost=0 ecc={ecc} util=37 power=412500 name={name}"
    )


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """Three GPUs, the second one cut in two. CUDA shows the third one, half of the second one, and the first one."""
    driver = Driver(tmp_path_factory.mktemp("driver"))
    whole = GPU.format(2)
    machine = [
        gpu(GPU.format(1)),
        gpu(whole, mig=1),
        gpu(MIG.format(4), parent=whole, gib=40, name="NVIDIA H100 MIG 3g.40gb"),
        gpu(MIG.format(5), parent=whole, gib=40, name="NVIDIA H100 MIG 3g.40gb"),
        gpu(GPU.format(3), temp=55, gib=141, ecc=2, name="NVIDIA H200"),
    ]
    driver.play("libnvidia-ml.so.1", machine)
    driver.play("libcuda.so.1", [uuid.partition("-")[2] for uuid in (GPU.format(3), MIG.format(5), GPU.format(1))])
    return driver


@pytest.fixture(scope="module")
def with_driver(start_server: Callable[..., LocalServer], driver: Driver) -> LocalServer:
    return start_server(
        services=("gpu",), embedding_models={}, reranking_models={}, data_dir=None, device="cuda", env=driver.env
    )


@pytest.mark.parametrize("flag", [["--require-gpu-at-start"], []])
def test_a_required_gpu_that_is_missing_ends_the_process_before_it_listens(
    gpu_server_binary: Path, flag: list[str]
) -> None:
    env = {"CUDA_VISIBLE_DEVICES": ""} | ({} if flag else {"MEDKG_REQUIRE_GPU_AT_START": "true"})
    # A port in use would be told first, had it tried to listen.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [gpu_server_binary, "--services", "gpu", "--listen", address, *flag]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert ended.returncode == 69
    assert "no GPU: " in ended.stderr
    assert "--require-gpu-at-start" in ended.stderr
    assert "cannot listen" not in ended.stderr
    missing = ("libcuda.so.1", "libtorch_cuda.so", "no device")
    assert any(part in ended.stderr for part in missing), ended.stderr


def test_a_gpu_cannot_be_required_of_the_cpu(gpu_server_binary: Path) -> None:
    command = [gpu_server_binary, "--services", "gpu", "--device", "cpu", "--require-gpu-at-start"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={})
    assert ended.returncode == 64
    assert "--require-gpu-at-start" in ended.stderr
    assert "--device cpu" in ended.stderr


@pytest.mark.parametrize("flag", [["--production"], []])
def test_production_refuses_the_cpu_and_plaintext(gpu_server_binary: Path, flag: list[str]) -> None:
    env = {} if flag else {"MEDKG_PRODUCTION": "true"}
    command = [gpu_server_binary, "--services", "gpu", "--device", "cpu", *flag]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)
    assert ended.returncode == 64
    refused = [line.removeprefix("gpu-server: ").split(" ")[0].rstrip(":") for line in ended.stderr.splitlines()]
    assert refused == ["--device", "--tls-cert", "--tls-client-ca"], ended.stderr


def test_libtorchs_cuda_half_is_loaded_where_there_is_a_driver(
    wire: Any, with_driver: LocalServer, open_channel: Any
) -> None:
    maps = Path(f"/proc/{with_driver.pid}/maps").read_text()
    g = wire.gpu
    stub = g.GpuServiceStub(open_channel(with_driver))
    status = stub.GetStatus(g.GetStatusRequest(), metadata=[TENANT], timeout=20)
    assert status.state == g.DEVICE_STATE_UNAVAILABLE
    if "libtorch_cuda.so cannot be loaded" in status.detail:
        # A libtorch for CPUs only: its lack is told.
        assert "libtorch_cuda.so" not in maps
        return
    assert "libtorch_cuda.so" in maps
    assert "shows no device to CUDA" in status.detail


@pytest.mark.requirement("isolation 2.2")
def test_gpus_are_listed_as_nvml_knows_them_and_as_cuda_counts_them(
    wire: Any, with_driver: LocalServer, open_channel: Any
) -> None:
    g = wire.gpu
    stub = g.GpuServiceStub(open_channel(with_driver))
    devices = stub.ListDevices(g.ListDevicesRequest(), metadata=[TENANT], timeout=20).devices
    shown = [("cuda:0", GPU.format(3)), ("cuda:1", MIG.format(5)), ("cuda:2", GPU.format(1))]
    hidden = [(uuid, uuid) for uuid in (GPU.format(2), MIG.format(4))]
    assert [(device.id, device.uuid) for device in devices] == shown + hidden
    assert all(device.kind == g.DEVICE_KIND_CUDA and not device.active for device in devices)
    h200, half, _, whole, _ = devices
    assert (h200.name, h200.total_memory_bytes, h200.used_memory_bytes) == ("NVIDIA H200", 141 * GIB, GIB)
    assert (h200.temperature_celsius, h200.compute_capability, h200.pci_bus_id) == (55, "9.0", "00000000:03:00.0")
    assert (whole.mig_enabled, half.mig_enabled, half.parent_uuid) == (True, False, whole.uuid)
    # NVML tells these of the whole GPU only.
    assert (half.temperature_celsius, half.compute_capability, half.pci_bus_id) == (40, "9.0", whole.pci_bus_id)
    assert half.total_memory_bytes == 40 * GIB
    told = medkg.GpuClient(address=with_driver.address, tenant="raw").devices()
    assert [(device.id, device.parent_uuid) for device in told] == [(d.id, d.parent_uuid) for d in devices]
    assert (told[0].temperature_celsius, told[0].used_memory_bytes, told[0].mig_enabled) == (55, GIB, False)


def test_one_device_is_told_in_detail_by_id_or_uuid(wire: Any, with_driver: LocalServer, open_channel: Any) -> None:
    g = wire.gpu
    stub = g.GpuServiceStub(open_channel(with_driver))

    def told(device: str) -> Any:
        return stub.GetDeviceInfo(g.GetDeviceInfoRequest(device=device), metadata=[TENANT], timeout=20)

    h200 = told("cuda:0")
    assert (h200.device.uuid, h200.device.total_memory_bytes) == (GPU.format(3), 141 * GIB)
    assert (h200.driver_version, h200.utilization_percent) == ("580.65.06", 37)
    assert (h200.power_milliwatts, h200.uncorrected_ecc_errors) == (412_500, 2)
    assert (h200.model_memory_bytes, list(h200.leases)) == (0, [])
    assert told(GPU.format(3)).device == h200.device
    part, whole = told(MIG.format(5)), told(GPU.format(2))
    assert (part.device.id, part.device.parent_uuid, part.driver_version) == ("cuda:1", GPU.format(2), "580.65.06")
    # Only the whole of a GPU draws power, and is busy.
    absent = ("utilization_percent", "power_milliwatts")
    assert not any(part.HasField(field) for field in absent)
    assert whole.device.mig_enabled
    assert all(whole.HasField(field) for field in absent)


def test_the_cpu_is_told_without_what_only_a_gpu_has(wire: Any, channel: grpc.Channel, server: LocalServer) -> None:
    g = wire.gpu
    stub = g.GpuServiceStub(channel)
    told = stub.GetDeviceInfo(g.GetDeviceInfoRequest(device="cpu"), metadata=[TENANT], timeout=20)
    assert (told.device.id, told.device.active, told.driver_version) == ("cpu", True, "")
    absent = ("utilization_percent", "power_milliwatts", "uncorrected_ecc_errors")
    assert not any(told.HasField(field) for field in absent)
    models = [
        *wire.embedding.EmbeddingServiceStub(channel)
        .ListModels(wire.embedding.EmbeddingServiceListModelsRequest(), metadata=[TENANT], timeout=20)
        .models,
        *wire.reranking.RerankingServiceStub(channel)
        .ListModels(wire.reranking.RerankingServiceListModelsRequest(), metadata=[TENANT], timeout=20)
        .models,
    ]
    assert told.model_memory_bytes == sum(model.memory_bytes for model in models) > 0
    assert server.pid


@pytest.mark.parametrize("device", ["", "cuda:0", "GPU-1", "x" * 5_000])
def test_a_device_that_is_not_listed_is_named(wire: Any, channel: grpc.Channel, refused: Any, device: str) -> None:
    g = wire.gpu
    refusal = refused(g.GpuServiceStub(channel).GetDeviceInfo, g.GetDeviceInfoRequest(device=device))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["device"])
    assert len(refusal.message) < 400


def test_devices_are_asked_each_time(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any, tmp_path: Path
) -> None:
    driver = Driver(tmp_path)
    driver.play("libnvidia-ml.so.1", [gpu(GPU.format(1), temp=40)])
    server = start_server(
        services=("gpu",), embedding_models={}, reranking_models={}, data_dir=None, device="cuda", env=driver.env
    )
    g = wire.gpu
    stub = g.GpuServiceStub(open_channel(server))

    def listed() -> Any:
        [device] = stub.ListDevices(g.ListDevicesRequest(), metadata=[TENANT], timeout=20).devices
        return device

    # The driver shows CUDA no device, so none has an ordinal.
    assert (listed().id, listed().temperature_celsius) == (GPU.format(1), 40)
    driver.play("libnvidia-ml.so.1", [gpu(GPU.format(1), temp=77)])
    assert listed().temperature_celsius == 77
    server.stop()


def test_the_status_is_told_now_and_until_the_server_stops(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any
) -> None:
    g = wire.gpu
    server = start_server(services=("gpu",), embedding_models={}, reranking_models={}, data_dir=None)
    stub = g.GpuServiceStub(open_channel(server))
    watch = stub.WatchStatus(g.WatchStatusRequest(), metadata=[TENANT])
    assert next(watch).status.state == g.DEVICE_STATE_READY
    assert server.stop() == 0
    assert list(watch) == []


def test_a_watch_on_a_server_without_its_gpu_says_so(wire: Any, with_driver: LocalServer, open_channel: Any) -> None:
    g = wire.gpu
    watch = g.GpuServiceStub(open_channel(with_driver)).WatchStatus(g.WatchStatusRequest(), metadata=[TENANT])
    status = next(watch).status
    assert (status.state, status.active_device) == (g.DEVICE_STATE_UNAVAILABLE, "")
    assert status.detail
    watch.cancel()


def test_what_is_no_lease_is_not_renewed(wire: Any, channel: grpc.Channel, refused: Any) -> None:
    g = wire.gpu
    stub = g.GpuServiceStub(channel)
    for method, request in (
        (stub.RenewLease, g.RenewLeaseRequest(lease_id="0" * 32)),
        (stub.ReleaseGPU, g.ReleaseGPURequest(lease_id="0" * 32)),
    ):
        refusal = refused(method, request)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "LEASE_NOT_FOUND")


@pytest.mark.parametrize("seconds", [-1, 0, 86_401, 2**62])
def test_a_bad_time_to_hold_is_named(wire: Any, channel: grpc.Channel, refused: Any, seconds: int) -> None:
    from google.protobuf.duration_pb2 import Duration

    g = wire.gpu
    stub = g.GpuServiceStub(channel)
    ttl = Duration(seconds=seconds)
    for method, request in (
        (stub.RenewLease, g.RenewLeaseRequest(lease_id="x", ttl=ttl)),
        (stub.AllocateGPU, g.AllocateGPURequest(memory_bytes=1, ttl=ttl)),
    ):
        refusal = refused(method, request)
        assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["ttl"])
