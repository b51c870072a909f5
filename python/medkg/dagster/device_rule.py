"""Refuses servers that compute on a CPU, where the project says that it wants GPUs.

gpu-server never falls back to the CPU by itself; an operator names it. A project in production refuses such a server
all the same, for an address may be wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from medkg.errors import ConfigError, MedkgError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import medkg

_NOT_SERVED: Final = "UNIMPLEMENTED"


def refuse_cpu(services: medkg.Services) -> None:
    """Asks the services what they compute on, before a step's own calls.

    A service that its server does not have computes nothing, and is passed over; a call of the step would fail. A
    server that cannot be asked is no answer: the error is raised.

    Raises:
        ConfigError: Something computes on anything but a GPU; every such service is named.
        medkg.MedkgError: A server could not be asked.
    """
    asked: dict[str, Callable[[], Iterable[str]]] = {
        "the GPU service": lambda: [services.gpu.status().requested_device],
        "the embedding service": lambda: [model.device for model in services.embedding.models() if model.device],
        "the reranking service": lambda: [model.device for model in services.reranking.models() if model.device],
    }
    found: list[tuple[str, str]] = []
    for name, devices in asked.items():
        try:
            computing = sorted({device for device in devices() if not device.startswith("cuda")})
        except MedkgError as error:
            if error.code == _NOT_SERVED:
                continue
            raise
        if computing:
            found.append((name, f"computes on {', '.join(computing)}, and this project requires a GPU (require_gpu)"))
    if found:
        listed = "; ".join(f"{name} {problem}" for name, problem in found)
        msg = f"{listed}. Name servers with a GPU, or allow the CPU outside production"
        raise ConfigError(msg, field_violations=found)
