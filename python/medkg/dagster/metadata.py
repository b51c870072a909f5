"""What a person sees on a materialization in numbers and tables: documents set aside, usage, devices, the trace.

Keys are namespaced (`medkg/...`, `dagster/row_count`), so that they keep their place beside those of other
integrations.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from medkg import errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import medkg
    from medkg.dagster.outputs import SetAside

TRACE_URL_VARIABLE: Final = "MEDKG_TRACE_URL"
"""Environment variable: the address of a trace in your tracing UI, with `{trace_id}` where the id goes. For links."""


def table(rows: Sequence[Mapping[str, str | int | float | bool | None]]) -> dg.TableMetadataValue:
    """A table of the first rows; the columns are those of the first row."""
    return dg.MetadataValue.table(
        records=[dg.TableRecord({name: "" if value is None else value for name, value in row.items()}) for row in rows],
        schema=dg.TableSchema(
            columns=[dg.TableColumn(name, type=_column_type(rows, name)) for name in (rows[0] if rows else ())]
        ),
    )


def set_aside(failed: Sequence[SetAside]) -> dict[str, dg.MetadataValue]:
    """How many documents failed, and which and why."""
    metadata: dict[str, dg.MetadataValue] = {"medkg/documents_set_aside": dg.MetadataValue.int(len(failed))}
    if failed:
        metadata["medkg/set_aside"] = table([{"document": one.document, "reason": one.reason} for one in failed])
    return metadata


def usage(used: Sequence[medkg.Usage]) -> dict[str, dg.MetadataValue]:
    """Sum of what calls cost: tokens, batches, requests, retries, cache hits, and seconds in queue, device and GPU."""
    return {
        "medkg/device": dg.MetadataValue.text(", ".join(sorted({one.device for one in used if one.device})) or "none"),
        "medkg/tokens": dg.MetadataValue.int(sum(one.tokens for one in used)),
        "medkg/batches": dg.MetadataValue.int(sum(one.batches for one in used)),
        "medkg/calls": dg.MetadataValue.int(sum(one.calls for one in used)),
        "medkg/retries": dg.MetadataValue.int(sum(one.retries for one in used)),
        "medkg/cache_hits": dg.MetadataValue.int(sum(one.cache_hits for one in used)),
        "medkg/queue_seconds": dg.MetadataValue.float(round(math.fsum(one.queue_time for one in used), 4)),
        "medkg/compute_seconds": dg.MetadataValue.float(round(math.fsum(one.compute_time for one in used), 4)),
        "medkg/gpu_seconds": dg.MetadataValue.float(
            round(math.fsum(one.compute_time for one in used if "cuda" in one.device), 4)
        ),
    }


def trace(trace_id: str) -> dict[str, dg.MetadataValue]:
    """The id of a trace, and a link to it where the environment says how one looks."""
    told: dict[str, dg.MetadataValue] = {"medkg/trace_id": dg.MetadataValue.text(trace_id)}
    address = os.environ.get(TRACE_URL_VARIABLE)
    if address:
        told["medkg/trace"] = dg.MetadataValue.url(address.replace("{trace_id}", trace_id))
    return told


def devices(gpu: medkg.GpuClient) -> dict[str, dg.MetadataValue]:
    """The devices of the server, their memory and temperature; nothing where it does not tell them.

    Raises:
        medkg.GpuNotAvailableError: The GPU is gone.
    """
    try:
        found = gpu.devices()
    except errors.GpuNotAvailableError:
        raise
    except errors.MedkgError:  # a server without the role `gpu`, or one that is busy: no reason to fail what is done
        return {}
    rows: list[dict[str, str | int | float | bool | None]] = [
        {
            "device": one.id,
            "name": one.name,
            "active": one.active,
            "used MiB": None if one.used_memory_bytes is None else one.used_memory_bytes >> 20,
            "total MiB": one.total_memory_bytes >> 20,
            "leased MiB": one.leased_memory_bytes >> 20,
            "°C": one.temperature_celsius,
        }
        for one in found
    ]
    used = sum(one.used_memory_bytes or 0 for one in found if one.active)
    return {
        "medkg/devices": table(rows),
        "medkg/device_memory_bytes": dg.MetadataValue.int(used),
    }


def _column_type(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    kinds = {type(row[name]) for row in rows if row[name] is not None}
    if kinds <= {int}:
        return "int" if kinds else "string"
    return "float" if kinds <= {int, float} else "string"
