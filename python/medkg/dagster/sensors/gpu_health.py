"""A sensor that watches the servers' GPUs: it holds GPU work back while there is none, and fails the runs that lost it.

Each tick asks every server for its status, within a deadline. What it hears is damped before anything is done: several
looks in a row must agree, and after a loss the more looks, the more losses there were lately, so that a GPU that comes
and goes does not open and shut the pool (after BGP's route-flap damping, RFC 2439).

- **lost**: servers answer, and none of them has a GPU. The pool's limit becomes 0 and the runs that were using it fail.
- **silent**: no server answers. The pool's limit becomes 0, and nothing fails: a network's fault is retried.
- **ready**: a server has its GPU. The pool gets back the limit it had.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import dagster as dg

import medkg
from medkg.dagster.alerts import Alert
from medkg.dagster.choices import RESOURCE_KEY
from medkg.dagster.failure_events import failure_class_of, failure_message
from medkg.dagster.failures import gpu_run_failure_message
from medkg.dagster.run_failure import fail_run
from medkg.dagster.sensors.outbox import Outbox
from medkg.dagster.sensors.pool_hold import hold_pool, is_held, release_pool
from medkg.failure_class import FailureClass

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST_DEADLINE: Final = 5.0
"""Seconds that one tick may spend on asking; Dagster's own limit covers the whole tick."""
NO_TENANT: Final = "medkg-gpu-health"
"""Whom the status is asked for where the resource names no tenant: it is nobody's data, but every call names one."""
_LATELY: Final = 3600.0
_MOST_LOOKS: Final = 20
_RUNNING: Final = [dg.DagsterRunStatus.STARTED]

State: TypeAlias = Literal["ready", "lost", "silent"]


@dataclass(frozen=True)
class Look:
    """What one server said."""

    address: str
    state: State
    detail: str
    device: str = ""
    memory_pressure: str | None = None


@dataclass
class Health:
    """What the sensor knows from tick to tick; its cursor."""

    state: State | None = None
    """What has been acted on; None before anything was."""
    seen: State | None = None
    """What the last look said."""
    looks: int = 0
    """Looks in a row that said so."""
    losses: list[float] = field(default_factory=list)
    """When it was lost or silent lately, in seconds since the epoch."""
    outbox: dict[str, Any] = field(default_factory=dict)

    def take(self, seen: State, now: float, *, lost_after: int, ready_after: int) -> bool:
        """Takes a look; True if the state has changed by it."""
        self.looks = self.looks + 1 if seen == self.seen else 1
        self.seen = seen
        self.losses = [at for at in self.losses if now - at < _LATELY]
        needed = lost_after if seen != "ready" else min(ready_after * max(1, len(self.losses)), _MOST_LOOKS)
        is_first_and_ready = self.state is None and seen == "ready"
        if seen == self.state or (self.looks < needed and not is_first_and_ready):
            return False
        if seen != "ready" and self.state in {"ready", None}:
            self.losses.append(now)
        self.state = seen
        return True


def gpu_health_sensor(
    *,
    services: str = RESOURCE_KEY,
    name: str = "medkg_gpu_health",
    pool: str = "gpu",
    asset_key: str = "gpu_health",
    channels: Sequence[str] = (),
    deadline: float = 4.0,
    lost_after: int = 2,
    ready_after: int = 3,
    fail_runs: bool = True,
    minimum_interval_seconds: int = 15,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.STOPPED,
) -> dg.SensorDefinition:
    """Watches the GPUs of the servers that a `GpuServicesResource` names.

    Args:
        services: Key of that resource. Its `gpu_addresses`, else its `addresses` or `address`, are asked one by one.
        name: Name of the sensor.
        pool: The pool of the steps that use the GPU. Its limit is set to 0 while there is none.
        asset_key: Asset on whose page the changes are recorded, as observations with the servers' states.
        channels: Keys of alert channels that are told of changes.
        deadline: Seconds for asking all servers, at most 5.
        lost_after: Looks in a row that must say "lost" or "silent".
        ready_after: Looks in a row that must say "ready", times the number of losses in the last hour.
        fail_runs: Whether the running runs that use the lost GPU fail: those with a step at work in the pool, and those
            in which a step has failed for the GPU. Under `gpu_fail_fast` the executor is quicker, and this finds none.
        minimum_interval_seconds: Seconds between two looks.
        default_status: Whether it runs without being turned on.

    Raises:
        ValueError: A number is out of range.
    """
    if not 0 < deadline <= LONGEST_DEADLINE:
        msg = f"deadline is {deadline}: give seconds above 0 and at most {LONGEST_DEADLINE:g}"
        raise ValueError(msg)
    if lost_after < 1 or ready_after < 1:
        msg = f"lost_after is {lost_after} and ready_after {ready_after}: at least 1 look is needed"
        raise ValueError(msg)

    @dg.sensor(
        name=name,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        required_resource_keys={services, *channels},
        description=f"Sets the limit of pool {pool} to 0 while no server has a GPU, and fails the runs that lost it.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        now = time.time()
        health = Health(**json.loads(context.cursor)) if context.cursor else Health()
        before = health.state
        looks = look_at(getattr(context.resources, services).client_config(), deadline)
        changed = health.take(_of_all(looks), now, lost_after=lost_after, ready_after=ready_after)
        detail = "; ".join(f"{look.address}: {look.state} {look.detail}".rstrip() for look in looks)
        told: list[str] = []
        if health.state in {"lost", "silent"} and (changed or not is_held(context.instance, pool)):
            hold_pool(context.instance, pool)
            told.append(f"pool {pool} is held at 0")
        elif health.state == "ready" and is_held(context.instance, pool):
            release_pool(context.instance, pool)
            told.append(f"pool {pool} has its limit back")
        if fail_runs:
            failed = _fail_runs(context, pool, detail if health.state == "lost" else None)
            told += [f"run {run_id} failed" for run_id in failed]
        outbox = Outbox.load(health.outbox, 0.0)
        if changed and not (before is None and health.state == "ready"):
            outbox.add(_alert(health.state, detail, told), channels, now)
        problems = outbox.deliver({key: getattr(context.resources, key) for key in channels}, now)
        health.outbox = outbox.dump()
        for line in (*told, *problems):
            context.log.info(line)
        waiting = "" if health.seen == health.state else f", {health.seen} for {health.looks} looks"
        return dg.SensorResult(
            cursor=json.dumps(asdict(health)),
            asset_events=[_observation(asset_key, health, looks, told)] if changed else [],
            skip_reason="; ".join([f"GPU {health.state or 'not known yet'}{waiting}: {detail}", *told, *problems]),
        )

    return sensor


def look_at(config: medkg.ClientConfig, deadline: float) -> list[Look]:
    """Asks each server that the configuration names for its GPU, all at once.

    Args:
        config: The addresses of the GPU service, or of all.
        deadline: Seconds for all of them.

    Raises:
        medkg.MedkgError: A server refuses to answer (no permission, a wrong certificate): that is no state of a GPU.
    """
    addresses = list(config.gpu_addresses or config.addresses or [])
    if not addresses and config.address:
        addresses = [config.address]
    tenant = config.tenant or NO_TENANT
    quick = replace(config, tenant=tenant, max_attempts=1, timeout=deadline, connect_timeout=deadline)
    # With nothing named they are found by discovery: whichever server answers.
    configs = [replace(quick, address=None, addresses=None, gpu_addresses=[one]) for one in addresses] or [quick]
    with ThreadPoolExecutor(len(configs)) as threads:
        return list(threads.map(_look, configs))


def _look(config: medkg.ClientConfig) -> Look:
    address = (config.gpu_addresses or ["discovered"])[0]
    with medkg.connect(config) as services:
        try:
            status = services.gpu.status()
        except medkg.GpuNotAvailableError as error:
            return Look(address, "lost", error.message)
        except (medkg.ServiceUnavailableError, medkg.ServiceTimeoutError, medkg.RateLimitedError) as error:
            return Look(address, "silent", error.message)
    state: State = "ready" if status.state == "ready" else "lost"
    return Look(address, state, status.detail, status.active_device, status.memory_pressure)


def _of_all(looks: list[Look]) -> State:
    """One ready GPU is enough: the client goes where it is."""
    states = {look.state for look in looks}
    return "ready" if "ready" in states else "lost" if "lost" in states else "silent"


def _fail_runs(context: dg.SensorEvaluationContext, pool: str, lost: str | None) -> list[str]:
    """Fails the runs in which a step failed for the GPU, and, if it is lost, those with a step at work in the pool."""
    instance = context.instance
    at_work = {
        slot.run_id: slot.step_key for slot in instance.event_log_storage.get_concurrency_info(pool).claimed_slots
    }
    failed = []
    for run in instance.get_runs(dg.RunsFilter(statuses=_RUNNING)):
        reason = _gpu_failure_in(instance, run.run_id)
        if reason is None and lost is not None and run.run_id in at_work:
            reason = gpu_run_failure_message(at_work[run.run_id], f"no server has a GPU: {lost}")
        if reason is not None and fail_run(instance, run.run_id, reason):
            failed.append(run.run_id)
    return failed


def _gpu_failure_in(instance: dg.DagsterInstance, run_id: str) -> str | None:
    for record in instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records:
        event = record.event_log_entry.get_dagster_event()
        if failure_class_of(event) is FailureClass.GPU:
            return gpu_run_failure_message(event.step_key or "unknown", failure_message(event))
    return None


def _alert(state: State | None, detail: str, told: list[str]) -> Alert:
    return Alert(
        key=f"gpu_health:{state}",
        title="The GPU is back" if state == "ready" else f"GPU {state}",
        text="; ".join([detail, *told]),
        severity="resolved" if state == "ready" else "error",
        failure_class="" if state == "ready" else (FailureClass.GPU if state == "lost" else FailureClass.NETWORK).value,
    )


def _observation(asset_key: str, health: Health, looks: list[Look], told: list[str]) -> dg.AssetObservation:
    columns = ("address", "state", "device", "memory_pressure", "detail")
    rows = [{name: str(getattr(look, name) or "") for name in columns} for look in looks]
    return dg.AssetObservation(
        asset_key,
        metadata={
            "medkg/gpu_state": str(health.state),
            "medkg/losses_in_the_last_hour": len(health.losses),
            "medkg/servers": dg.MetadataValue.table([dg.TableRecord(row) for row in rows]),
            "medkg/done": "; ".join(told) or "nothing",
        },
    )
