"""A sensor that notices when an asset has become slower than it used to be.

The baseline is the median of the asset's former values, its spread their median absolute deviation (Hampel's
identifier: both stand firm against single wild values). Values that are judged bad never enter it, so that a lasting
degradation does not become the new normal; resetting the sensor's cursor accepts it.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import dagster as dg

from medkg.dagster.alerts import Alert
from medkg.dagster.sensors.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Sequence

METRIC: Final = "medkg/chunks_per_second"
_TO_SIGMA: Final = 1.4826  # of a normal distribution, a median absolute deviation becomes its standard deviation
_MATERIALIZATIONS_A_TICK: Final = 100


@dataclass
class Watch:
    """What is known of one asset; part of the cursor."""

    after: int | None = None
    """Storage id of the last materialization that was read."""
    good: list[float] = field(default_factory=list)
    """The last values that were not bad, oldest first."""
    bad: int = 0
    """Bad values in a row."""
    degraded: bool = False

    def baseline(self) -> float:
        """The median of the good values."""
        return statistics.median(self.good)

    def limit(self, drop: float, worse: int) -> float:
        """The value beyond which one is bad: `drop` and three standard deviations away, whichever is further."""
        median = self.baseline()
        spread = _TO_SIGMA * statistics.median(abs(value - median) for value in self.good)
        return median + worse * max(drop * abs(median), 3 * spread)


def performance_sensor(
    assets: Sequence[dg.AssetKey | str],
    *,
    channels: Sequence[str] = (),
    metric: str = METRIC,
    worse: Literal["lower", "higher"] = "lower",
    drop: float = 0.3,
    confirm: int = 2,
    history: int = 20,
    least: int = 5,
    name: str = "medkg_performance",
    minimum_interval_seconds: int = 60,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.STOPPED,
) -> dg.SensorDefinition:
    """Compares each new materialization of some assets with the former ones.

    When it is turned on it learns from the materializations that are there, and alerts of none of them. An asset that
    has become slower, or is as quick as before again, gets an observation with the value and the baseline.

    Args:
        assets: What to watch.
        channels: Keys of the alert channels that are told.
        metric: Key of a number in the materializations' metadata; those without it are passed over.
        worse: Whether a lower or a higher value is the worse one (`"higher"` for seconds).
        drop: Share of the baseline by which a value must be worse, e.g. 0.3.
        confirm: Bad materializations in a row before it is told.
        history: Values of the baseline, at most.
        least: Values of the baseline, at least: with fewer nothing is judged.
        name: Name of the sensor.
        minimum_interval_seconds: Seconds between two looks.
        default_status: Whether it runs without being turned on.
    """
    sign = -1 if worse == "lower" else 1
    keys = [dg.AssetKey.from_coercible(asset) for asset in assets]

    @dg.sensor(
        name=name,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        required_resource_keys=set(channels),
        description=f"Notices when {metric} of an asset becomes worse than it was.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        now = time.time()
        state: dict[str, Any] = json.loads(context.cursor) if context.cursor else {}
        outbox = Outbox.load(state.get("outbox", {}), 0.0)
        watches: dict[str, Any] = {}
        observations = []
        for key in keys:
            watch = Watch(**state.get("assets", {}).get(key.to_user_string(), {}))
            learning = watch.after is None
            for value in _new_values(context.instance, key, metric, watch):
                if learning or len(watch.good) < least:
                    watch.good = [*watch.good, value][-history:]
                    continue
                baseline, limit = watch.baseline(), watch.limit(drop, sign)
                if sign * (value - limit) > 0:
                    watch.bad += 1
                else:
                    watch.bad = 0
                    watch.good = [*watch.good, value][-history:]
                if watch.degraded == (watch.bad >= confirm) or (watch.degraded and watch.bad):
                    continue
                watch.degraded = not watch.degraded
                observations.append(_observation(key, metric, value, baseline, degraded=watch.degraded))
                outbox.add(_alert(key, metric, value, baseline, degraded=watch.degraded), channels, now)
            watches[key.to_user_string()] = asdict(watch)
        problems = outbox.deliver({channel: getattr(context.resources, channel) for channel in channels}, now)
        for problem in problems:
            context.log.warning("alert not delivered, tried again at the next tick: %s", problem)
        slow = [key for key, watch in watches.items() if watch["degraded"]]
        summary = f"degraded: {', '.join(slow)}" if slow else "nothing is slower than it was"
        return dg.SensorResult(
            cursor=json.dumps({"assets": watches, "outbox": outbox.dump()}),
            asset_events=observations,
            skip_reason="; ".join([summary, *problems]),
        )

    return sensor


def _new_values(instance: dg.DagsterInstance, key: dg.AssetKey, metric: str, watch: Watch) -> list[float]:
    """The metric's values in the materializations since the last look, oldest first; at the first look, the newest."""
    first = watch.after is None
    wanted = dg.AssetRecordsFilter(key, after_storage_id=watch.after)
    found = instance.fetch_materializations(wanted, limit=_MATERIALIZATIONS_A_TICK, ascending=not first).records
    ordered = list(reversed(found)) if first else list(found)
    watch.after = ordered[-1].storage_id if ordered else (0 if first else watch.after)
    materialized = [record.asset_materialization for record in ordered]
    values = [one.metadata[metric].value for one in materialized if one is not None and metric in one.metadata]
    return [float(value) for value in values if isinstance(value, (int, float))]


def _alert(key: dg.AssetKey, metric: str, value: float, baseline: float, *, degraded: bool) -> Alert:
    asset = key.to_user_string()
    return Alert(
        key=f"performance:{asset}:{'degraded' if degraded else 'recovered'}",
        title=f"{asset} has become slower" if degraded else f"{asset} is as quick as before",
        text=f"{metric} is {value:g}, the median of its former values {baseline:g}",
        severity="warning" if degraded else "resolved",
        facts={"asset": asset, "metric": metric, "value": f"{value:g}", "baseline": f"{baseline:g}"},
    )


def _observation(
    key: dg.AssetKey, metric: str, value: float, baseline: float, *, degraded: bool
) -> dg.AssetObservation:
    return dg.AssetObservation(
        key, metadata={metric: value, f"{metric}.baseline": baseline, "medkg/degraded": degraded}
    )
