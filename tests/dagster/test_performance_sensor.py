"""An asset that becomes slower than it was is noticed, told once, and told again when it is as quick as before."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from medkg.dagster.alerts import Alert, AlertChannel
from medkg.dagster.sensors import performance_sensor
from medkg.dagster.sensors.performance import METRIC

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.requirement("isolation 11.5")
FORMER = [100.0, 104.0, 97.0, 101.0, 99.0, 102.0]
TOLD: list[Alert] = []


class Told(AlertChannel):
    """Keeps what it is told."""

    def send(self, alert: Alert) -> None:
        TOLD.append(alert)


@pytest.fixture(autouse=True)
def _nothing_told() -> None:
    TOLD.clear()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def materialize(instance: dg.DagsterInstance, values: Sequence[float], metric: str = METRIC) -> None:
    for value in values:
        instance.report_runless_asset_event(dg.AssetMaterialization("embeddings", metadata={metric: value}))


def tick(instance: dg.DagsterInstance, sensor: dg.SensorDefinition, cursor: str | None) -> tuple[str | None, Any]:
    with dg.build_sensor_context(instance, cursor=cursor, resources={"told": Told()}) as context:
        done = sensor.evaluate_tick(context)
    return done.cursor, done


def test_it_is_told_after_two_slow_runs_and_again_when_it_has_recovered(instance: dg.DagsterInstance) -> None:
    sensor = performance_sensor(["embeddings"], channels=["told"])
    materialize(instance, [20.0, *FORMER])
    cursor, _ = tick(instance, sensor, None)
    materialize(instance, [50.0])
    cursor, done = tick(instance, sensor, cursor)
    assert TOLD == []
    assert done.skip_message == "nothing is slower than it was"
    materialize(instance, [55.0])
    cursor, done = tick(instance, sensor, cursor)
    (alert,) = TOLD
    assert alert.severity == "warning"
    assert alert.facts == {"asset": "embeddings", "metric": METRIC, "value": "55", "baseline": "100"}
    (observation,) = done.asset_events
    assert observation.metadata["medkg/degraded"].value is True
    assert observation.metadata[f"{METRIC}.baseline"].value == 100.0
    assert done.skip_message == "degraded: embeddings"
    materialize(instance, [50.0] * 30)  # a lasting one is told once, and does not become the new normal
    cursor, _ = tick(instance, sensor, cursor)
    assert len(TOLD) == 1
    materialize(instance, [98.0])
    tick(instance, sensor, cursor)
    assert [alert.severity for alert in TOLD] == ["warning", "resolved"]


def test_one_slow_run_between_others_is_nothing(instance: dg.DagsterInstance) -> None:
    sensor = performance_sensor(["embeddings"], channels=["told"])
    materialize(instance, FORMER)
    cursor, _ = tick(instance, sensor, None)
    materialize(instance, [50.0, 100.0, 50.0, 99.0])
    tick(instance, sensor, cursor)
    assert TOLD == []


def test_an_asset_whose_values_vary_much_anyway_is_not_told(instance: dg.DagsterInstance) -> None:
    sensor = performance_sensor(["embeddings"], channels=["told"])
    materialize(instance, [40.0, 160.0, 90.0, 200.0, 60.0, 120.0])
    cursor, _ = tick(instance, sensor, None)
    materialize(instance, [50.0, 45.0])
    tick(instance, sensor, cursor)
    assert TOLD == []


def test_of_seconds_the_higher_value_is_the_worse_one(instance: dg.DagsterInstance) -> None:
    sensor = performance_sensor(["embeddings"], channels=["told"], metric="medkg/seconds", worse="higher")
    materialize(instance, FORMER, "medkg/seconds")
    cursor, _ = tick(instance, sensor, None)
    materialize(instance, [10.0, 10.0, 160.0, 170.0], "medkg/seconds")
    tick(instance, sensor, cursor)
    assert [alert.facts["value"] for alert in TOLD] == ["170"]


def test_nothing_is_judged_before_there_is_a_baseline(instance: dg.DagsterInstance) -> None:
    sensor = performance_sensor(["embeddings"], channels=["told"], least=5)
    cursor, _ = tick(instance, sensor, None)
    materialize(instance, [100.0, 10.0, 10.0])
    instance.report_runless_asset_event(dg.AssetMaterialization("embeddings"))  # without the metric
    cursor, _ = tick(instance, sensor, cursor)
    assert TOLD == []
    assert json.loads(cursor or "")["assets"]["embeddings"]["good"] == [100.0, 10.0, 10.0]
