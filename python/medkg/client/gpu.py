"""What a server computes on, waiting for the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from medkg.base import Client
from medkg.call_context import resolve
from medkg.client.native import native
from medkg.watching import StatusWatch

if TYPE_CHECKING:
    from datetime import datetime

    from typing_extensions import Unpack

    from medkg.base import Half
    from medkg.call_context import CallOptions
    from medkg.results import DeviceDetails, DeviceInfo, GpuStatus, Lease


class GpuClient(Client[native.Gpu]):
    """What a server computes on, and memory set aside on it."""

    __slots__ = ()
    _half: ClassVar[Half] = native.Gpu

    def status(self, **call: Unpack[CallOptions]) -> GpuStatus:
        """The truth about the device; answers also while there is none."""
        return self._native.status(resolve(**call))

    def watch_status(self, **call: Unpack[CallOptions]) -> StatusWatch:
        """The status now, and again whenever it changes, until the server stops.

        ``timeout`` is for the first status; the watch has no end of its own. A connection that breaks raises.
        """
        return StatusWatch(self._native.watch_status(resolve(**call)))

    def devices(self, **call: Unpack[CallOptions]) -> list[DeviceInfo]:
        """The devices of the server's machine."""
        return self._native.devices(resolve(**call))

    def device(self, device: str, **call: Unpack[CallOptions]) -> DeviceDetails:
        """One device in detail, with the tenant's leases there.

        Args:
            device: An ``id`` or a ``uuid`` of :meth:`devices`.
            **call: See :class:`medkg.call_context.CallOptions`.

        Raises:
            ValidationError: There is no such device.
        """
        return self._native.device(resolve(**call), device)

    def allocate(
        self,
        memory_bytes: int,
        device: str | None = None,
        ttl: float | None = None,
        owner: str = "",
        *,
        wait: float | None = None,
        outlives_connection: bool = False,
        **call: Unpack[CallOptions],
    ) -> Lease:
        """Set device memory aside until the lease expires, is released, or its connection dies.

        The connection is the one that all clients of this process share, and closes with the last of them or with the
        process. Some seconds after it died (``--lease-grace``) the lease ends; :meth:`renew` over a new one keeps it.

        Args:
            memory_bytes: At least 1.
            device: ``"cuda:N"`` or a UUID, also of a MIG device; None means the device with most memory left.
            ttl: Seconds the lease holds, 1 to 86,400; None means 300.
            owner: Who asks, for the operator's eyes; at most 128 characters.
            wait: Seconds to wait for memory, at most 3,600, and not beyond the call's ``timeout``; None means not at
                all. Tenants take turns; within one it is first come, first served.
            outlives_connection: Whether the lease ends by ``ttl`` or :meth:`release` alone.
            **call: See :class:`medkg.call_context.CallOptions`.

        Raises:
            RateLimitedError: No device has as much left (``GPU_MEMORY_EXHAUSTED``), at once or after ``wait``.
            ValidationError: ``memory_bytes`` is no whole number above 0, or more than any device has.
            GpuNotAvailableError: There is no GPU.
        """
        return self._native.allocate(resolve(**call), memory_bytes, device, ttl, owner, wait, outlives_connection)

    def renew(self, lease_id: str, ttl: float | None = None, **call: Unpack[CallOptions]) -> datetime:
        """Let a lease hold for ``ttl`` seconds from now on (None: 300); returns when it ends then, aware, in UTC."""
        return self._native.renew(resolve(**call), lease_id, ttl)

    def release(self, lease_id: str, **call: Unpack[CallOptions]) -> int:
        """Give a lease back; returns the bytes that are free again."""
        return self._native.release(resolve(**call), lease_id)
