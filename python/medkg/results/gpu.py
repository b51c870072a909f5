"""What a server computes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Literal


@dataclass(frozen=True, slots=True)
class GpuStatus:
    """The truth about a server's device.

    Attributes:
        state: Whether it can be used.
        requested_device: What the operator asked for: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        active_device: What computes; empty where nothing does.
        detail: Why, in words.
        server_version: The server's version.
        roles: The roles it serves.
        uptime: Seconds since it started.
        threads: Threads that one operation on the CPU may use.
        memory_pressure: How short the active GPU's memory is: ``"warn"`` from the server's ``--gpu-memory-warn`` on,
            ``"critical"`` from ``--gpu-memory-critical`` on; None on a CPU, and where it is not known.
        used_memory_bytes: Bytes of that memory that all processes use; None where it is not known.
        total_memory_bytes: Bytes that it has; 0 where it is not known.
    """

    state: Literal["ready", "unavailable"]
    requested_device: str
    active_device: str
    detail: str
    server_version: str
    roles: list[str]
    uptime: float
    threads: int
    memory_pressure: Literal["normal", "warn", "critical"] | None
    used_memory_bytes: int | None
    total_memory_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device of a server's machine.

    Attributes:
        id: ``"cpu"``, ``"cuda:N"``, or the UUID of a GPU that CUDA does not show to the server.
        kind: ``"cpu"``, ``"cuda"`` or ``"unknown"``.
        name: The maker's name.
        total_memory_bytes: Bytes it has.
        leased_memory_bytes: Bytes that leases hold.
        active: True if the server computes on it.
        used_memory_bytes: Bytes that all processes use; None where it is not known.
        uuid: As ``nvidia-smi -L`` lists it; empty for a CPU.
        pci_bus_id: Its place on the bus; empty for a CPU.
        temperature_celsius: Of the chip; None where it is not known.
        compute_capability: Such as ``"9.0"``; empty where it is not known.
        mig_enabled: True for a GPU that is cut into MIG devices, which are listed too.
        parent_uuid: For a MIG device, the UUID of its GPU; else empty.
        held_by_others_bytes: Bytes that other servers of the host hold of it; None where they share no lease store.
    """

    id: str
    kind: str
    name: str
    total_memory_bytes: int
    leased_memory_bytes: int
    active: bool
    used_memory_bytes: int | None
    uuid: str
    pci_bus_id: str
    temperature_celsius: int | None
    compute_capability: str
    mig_enabled: bool
    parent_uuid: str
    held_by_others_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """A lease that the tenant holds.

    Attributes:
        lease_id: For ``renew`` and ``release``.
        owner: Who asked for it.
        memory_bytes: Bytes set aside.
        expires_at: When it ends by itself; aware, UTC.
    """

    lease_id: str
    owner: str
    memory_bytes: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class DeviceDetails:
    """A device and what else NVML tells of it: nothing of a CPU, and of a MIG device not what only the whole GPU has.

    Attributes:
        device: As ``devices`` tells it.
        driver_version: Of the NVIDIA driver; empty where there is none.
        utilization_percent: Part of the last moments in which it computed for any process, 0 to 100; None where
            NVML does not tell.
        power_milliwatts: What it draws now; None where it is not known.
        uncorrected_ecc_errors: ECC errors that could not be corrected, since the driver was loaded; None where
            it is not known.
        model_memory_bytes: Bytes of models' weights that the server's process holds there.
        leases: The tenant's leases there, by id.
    """

    device: DeviceInfo
    driver_version: str
    utilization_percent: int | None
    power_milliwatts: int | None
    uncorrected_ecc_errors: int | None
    model_memory_bytes: int
    leases: list[LeaseInfo]


@dataclass(frozen=True, slots=True)
class Lease:
    """Device memory set aside.

    Attributes:
        lease_id: For ``renew`` and ``release``.
        device: ``"cuda:N"``.
        memory_bytes: Bytes set aside.
        expires_at: When it ends by itself; aware, UTC.
    """

    lease_id: str
    device: str
    memory_bytes: int
    expires_at: datetime
