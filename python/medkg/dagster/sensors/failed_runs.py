"""A sensor that alerts of failed runs, with the class of the failure.

A plain sensor and no `run_failure_sensor`: that one moves on when its function raises, so an alert that a channel did
not take would be lost. The cursor here holds what still has to be sent.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

import dagster as dg
from dagster._core.event_api import RunStatusChangeRecordsFilter

from medkg.dagster.alerts import Alert
from medkg.dagster.failure_events import failure_class_of, failure_message
from medkg.dagster.sensors.outbox import Outbox
from medkg.failure_class import FailureClass

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

OTHER: Final = "OTHER"
"""The class of a failure that is not medkg's."""
_FAILURES_A_TICK: Final = 50
_FACTS: Final = {
    "server": "medkg/error.endpoint",
    "request": "medkg/error.request_id",
    "trace": "medkg/error.trace_id",
    "code": "medkg/error.code",
    "reason": "medkg/error.reason",
}


def failed_run_alerts(
    channels: Sequence[str],
    *,
    name: str = "medkg_failed_run_alerts",
    jobs: Collection[str] | None = None,
    window: float = 3600.0,
    relaunched: bool = False,
    ui: str | None = None,
    minimum_interval_seconds: int = 30,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.STOPPED,
) -> dg.SensorDefinition:
    """Alerts of runs that failed, from the moment the sensor is turned on.

    Args:
        channels: Keys of the resources (`WebhookAlerts`, `SlackAlerts`, `EmailAlerts`) that get them.
        name: Name of the sensor.
        jobs: Names of the jobs to look at; None means all of this code location.
        window: Seconds in which one alert is sent for the same job, class, step and reason; the rest are counted.
        relaunched: Whether a failed run that the daemon will launch again is told too.
        ui: Address of the webserver, for a link to the run.
        minimum_interval_seconds: Seconds between two looks.
        default_status: Whether it runs without being turned on.
    """

    @dg.sensor(
        name=name,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        required_resource_keys=set(channels),
        description="Alerts of failed runs, with the class of the failure. One alert for the same failure in a while.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        now = time.time()
        state: dict[str, Any] = json.loads(context.cursor) if context.cursor else {}
        outbox = Outbox.load(state, window)
        after = state.get("after")
        told = 0
        if after is None:
            newest = context.instance.fetch_run_status_changes(dg.DagsterEventType.RUN_FAILURE, limit=1).records
            after = newest[0].storage_id if newest else -1
        else:
            changes = RunStatusChangeRecordsFilter(dg.DagsterEventType.RUN_FAILURE, after_storage_id=after)
            found = context.instance.fetch_run_status_changes(changes, limit=_FAILURES_A_TICK, ascending=True)
            for record in found.records:
                after = record.storage_id
                run = context.instance.get_run_by_id(record.event_log_entry.run_id)
                if run is None or not _is_meant(context, run, jobs, relaunched=relaunched):
                    continue
                told += outbox.add(_alert_of(context.instance, run, record.event_log_entry, ui), channels, now)
        outbox.close_windows(channels, now)
        problems = outbox.deliver({key: getattr(context.resources, key) for key in channels}, now)
        for problem in problems:
            context.log.warning("alert not delivered, tried again at the next tick: %s", problem)
        summary = f"{told} failures told, {len(outbox.waiting)} alerts waiting"
        return dg.SensorResult(
            cursor=json.dumps({"after": after, **outbox.dump()}), skip_reason="; ".join([summary, *problems])
        )

    return sensor


def _alert_of(instance: dg.DagsterInstance, run: dg.DagsterRun, entry: dg.EventLogEntry, ui: str | None) -> Alert:
    """The alert of a failed run: of its GPU failure if it had one, else of the first step that failed."""
    records = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
    failed = [event for record in records if (event := record.event_log_entry.dagster_event) is not None]
    failed.sort(key=lambda event: failure_class_of(event) is not FailureClass.GPU)
    facts = {"job": run.job_name, "run": run.run_id}
    failure_class, text = OTHER, entry.get_dagster_event().message or "the run failed"
    if failed:
        event = failed[0]
        found = failure_class_of(event)
        failure_class = OTHER if found is None else found.value
        text = failure_message(event)
        facts["step"] = event.step_key or ""
        reported = event.step_failure_data.user_failure_data
        known = reported.metadata if reported is not None else {}
        facts |= {fact: str(known[key].value) for fact, key in _FACTS.items() if key in known}
    if ui is not None:
        facts["link"] = f"{ui.rstrip('/')}/runs/{run.run_id}"
    return Alert(
        key=":".join((run.job_name, failure_class, facts.get("step", ""), facts.get("reason", ""))),
        title=f"{failure_class} failure in {run.job_name}",
        text=text,
        failure_class=failure_class,
        facts=facts,
    )


def _is_meant(
    context: dg.SensorEvaluationContext, run: dg.DagsterRun, jobs: Collection[str] | None, *, relaunched: bool
) -> bool:
    if jobs is not None and run.job_name not in jobs:
        return False
    if not relaunched and run.tags.get("dagster/will_retry") == "true":
        return False
    here, origin = context.code_location_origin, run.remote_job_origin
    if here is None or origin is None:
        return True
    return origin.repository_origin.code_location_origin.location_name == here.location_name
