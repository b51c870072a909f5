"""What docs/dagster/scale.md tells to configure is what Dagster's packages take, and does what it says."""

import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.test_utils import create_run_for_test, instance_for_test
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from dagster_celery import celery_executor
from dagster_celery_k8s import celery_k8s_job_executor
from dagster_k8s import k8s_job_executor

from medkg.dagster import TENANT_TAG, gpu_fail_fast

pytestmark = pytest.mark.requirement("isolation 11.3")

EXECUTORS = {
    "k8s_job_executor": k8s_job_executor,
    "celery_executor": celery_executor,
    "celery_k8s_job_executor": celery_k8s_job_executor,
}
GUIDE = Path(__file__).parents[2] / "docs" / "dagster" / "scale.md"


ORIGIN = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("clinic"), "repository"), "literature")


def block(title: str) -> Any:
    """The YAML of the guide that begins with a comment."""
    (found,) = re.findall(rf"```yaml\n# {re.escape(title)}\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    return yaml.safe_load(found)


@pytest.mark.parametrize("name", EXECUTORS)
@pytest.mark.parametrize("wrap", [lambda executor: executor, gpu_fail_fast], ids=["bare", "gpu_fail_fast"])
def test_executors_take_the_guide_s_run_configuration(name: str, wrap: Any) -> None:
    @dg.job(executor_def=wrap(EXECUTORS[name]))
    def spread() -> None:
        pass

    run_config = block(f"run configuration: {name}")
    assert dg.validate_run_config(spread, run_config)["execution"]
    run_config["execution"]["config"]["no_such_option"] = 1
    with pytest.raises(dg.DagsterInvalidConfigError, match="no_such_option"):
        dg.validate_run_config(spread, run_config)


def test_a_busy_tenant_does_not_hold_up_another() -> None:
    with instance_for_test(overrides={**block("dagster.yaml"), "telemetry": {"enabled": False}}) as instance:

        def queue(tenant: str) -> str:
            return create_run_for_test(
                instance, status=dg.DagsterRunStatus.QUEUED, tags={TENANT_TAG: tenant}, remote_job_origin=ORIGIN
            ).run_id

        busy = [queue("clinic-1") for _ in range(6)]
        late = queue("clinic-2")

        def dequeued() -> list[str]:
            daemon = QueuedRunCoordinatorDaemon(interval_seconds=1)
            runs = daemon._get_runs_to_dequeue(instance, instance.get_concurrency_config(), fixed_iteration_time=None)
            return [run.run_id for run in runs]

        assert dequeued() == [*busy[:2], late], "two of the one, and the other's at once"
        running = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, tags={TENANT_TAG: "clinic-1"})
        assert dequeued() == [busy[0], late], "what runs counts"
        instance.delete_run(running.run_id)
        pools = instance.get_concurrency_config().pool_config
        assert (pools.default_pool_limit, pools.pool_granularity.value) == (4, "op")
