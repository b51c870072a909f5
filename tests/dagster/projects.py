"""The Dagster projects that the tests run; step processes import this file by its path.

What changes from test to test comes in by run configuration. A run's tag names a folder in which its steps leave
marks: files that tell the test, in another process, how far a step has come. (A tag and no environment variable: steps
are forked from a process that keeps the environment it was started with.)
"""

import time
from pathlib import Path

import dagster as dg

import medkg
from medkg.dagster import (
    GpuServicesResource,
    RunServices,
    TableIOManager,
    forkserver_executor,
    gpu_fail_fast,
    gpu_failure_hook,
    gpu_health_sensor,
    medkg_assets,
)

MARKS_TAG = "medkg-test/marks"
WAIT = 240.0

QUICK = gpu_fail_fast(forkserver_executor)
STOCK = gpu_fail_fast()


def mark(context: dg.OpExecutionContext, name: str) -> None:
    """Adds a line to a mark."""
    with Path(context.run.tags[MARKS_TAG], name).open("a", encoding="utf-8") as file:
        file.write("x\n")


def wait_for_mark(context: dg.OpExecutionContext, name: str) -> None:
    """Waits until another step has left a mark."""
    path = Path(context.run.tags[MARKS_TAG], name)
    deadline = time.monotonic() + WAIT
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(name)
        time.sleep(0.02)


def pipeline() -> dg.JobDefinition:
    """The example's assets, with documents and questions from the run configuration."""
    definitions = dg.Definitions(
        assets=medkg_assets(documents="documents-come-from-the-run-configuration", collection="test"),
        jobs=[dg.define_asset_job("literature")],
        resources={"gpu_services": GpuServicesResource(), "io_manager": TableIOManager()},
        executor=QUICK,
    )
    return definitions.resolve_job_def("literature")


@dg.op(retry_policy=dg.RetryPolicy(max_retries=3), pool="gpu")
def embed_beside_a_sibling(context: dg.OpExecutionContext, gpu_services: GpuServicesResource) -> None:
    """Calls the server once its sibling is at work; would be retried by its policy."""
    mark(context, "embed")
    wait_for_mark(context, "sibling")
    with gpu_services.for_run(context) as run:
        run.embedding.embed(["acute kidney injury"])


@dg.op(retry_policy=dg.RetryPolicy(max_retries=3), pool="gpu")
def raw_embed_beside_a_sibling(context: dg.OpExecutionContext, gpu_services: GpuServicesResource) -> None:
    """The same without `for_run`: the client's error reaches Dagster as it is."""
    mark(context, "embed")
    wait_for_mark(context, "sibling")
    gpu_services.connect().embedding.embed(["acute kidney injury"])


@dg.op(retry_policy=dg.RetryPolicy(max_retries=3), pool="gpu")
def embed_until_the_gpu_is_lost(context: dg.OpExecutionContext, gpu_services: GpuServicesResource) -> None:
    """Calls the server over and over while its sibling is at work; would be retried by its policy."""
    mark(context, "embed")
    wait_for_mark(context, "sibling")
    with gpu_services.for_run(context) as run:
        while True:
            run.embedding.embed(["acute kidney injury"])
            mark(context, "embedded")


@dg.op(retry_policy=dg.RetryPolicy(max_retries=3), pool="gpu")
def sibling(context: dg.OpExecutionContext) -> str:
    """Works, with nothing to do with the GPU failure, for longer than the test lasts."""
    mark(context, "sibling")
    wait_for_mark(context, "nobody-leaves-this-mark")
    mark(context, "sibling-done")
    return "done"


@dg.op
def after_sibling(context: dg.OpExecutionContext, done: str) -> None:
    """Must never start."""
    mark(context, f"after-sibling-{done}")


def gpu_job() -> dg.JobDefinition:
    """A GPU failure beside a sibling."""

    @dg.job(executor_def=QUICK, resource_defs={"gpu_services": GpuServicesResource()})
    def gpu_failure() -> None:
        embed_beside_a_sibling()
        after_sibling(sibling())

    return gpu_failure


def stock_gpu_job() -> dg.JobDefinition:
    """The same under Dagster's own default executor, which can also run in process."""

    @dg.job(executor_def=STOCK, resource_defs={"gpu_services": GpuServicesResource()})
    def stock_gpu_failure() -> None:
        embed_beside_a_sibling()
        after_sibling(sibling())

    return stock_gpu_failure


def _lost_gpu(name: str, executor: dg.ExecutorDefinition, hooks: set[dg.HookDefinition]) -> dg.JobDefinition:
    @dg.job(name=name, executor_def=executor, resource_defs={"gpu_services": GpuServicesResource()}, hooks=hooks)
    def lost() -> None:
        embed_until_the_gpu_is_lost()
        after_sibling(sibling())

    return lost


def lost_gpu_job() -> dg.JobDefinition:
    """A GPU that is lost while siblings work."""
    return _lost_gpu("lost_gpu", QUICK, set())


def lost_gpu_in_process_job() -> dg.JobDefinition:
    """The same where the steps run one after the other in one process."""
    return _lost_gpu("lost_gpu_in_process", gpu_fail_fast(dg.in_process_executor), set())


def lost_gpu_stock_job() -> dg.JobDefinition:
    """The same under an executor of Dagster's own, with the hook."""
    return _lost_gpu("lost_gpu_stock", forkserver_executor, {gpu_failure_hook})


def lost_gpu_unguarded_job() -> dg.JobDefinition:
    """The same with nothing that ends the run: a step fails, its sibling works on."""
    return _lost_gpu("lost_gpu_unguarded", forkserver_executor, set())


def stock_at_work_job() -> dg.JobDefinition:
    """Steps that have a place in the pool and call no server, under an executor of Dagster's own."""

    @dg.job(executor_def=dg.multiprocess_executor)
    def stock_at_work() -> None:
        after_sibling(sibling())

    return stock_at_work


@dg.op
def fail() -> None:
    """Fails for a reason of its own."""
    raise RuntimeError("no fault of the GPU")


def plain_failure_job() -> dg.JobDefinition:
    """A run that the daemon launches again."""

    @dg.job(executor_def=dg.in_process_executor)
    def plain_failure() -> None:
        fail()

    return plain_failure


@dg.run_failure_sensor(minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def tells_failures(context: dg.RunFailureSensorContext) -> None:
    """Leaves a mark for each run that failed."""
    marks = context.dagster_run.tags.get(MARKS_TAG)
    if marks:
        Path(marks, f"sensor-{context.dagster_run.run_id}").write_text(context.failure_event.message or "")


def raw_gpu_job() -> dg.JobDefinition:
    """The same again, from an op that lets the client's error through."""

    @dg.job(executor_def=STOCK, resource_defs={"gpu_services": GpuServicesResource()})
    def raw_gpu_failure() -> None:
        raw_embed_beside_a_sibling()
        after_sibling(sibling())

    return raw_gpu_failure


@dg.op
def embed_once(context: dg.OpExecutionContext, gpu_services: GpuServicesResource) -> list[int]:
    """One call."""
    mark(context, "attempt")
    with gpu_services.for_run(context) as run:
        return list(run.embedding.embed(["acute kidney injury"]).vectors.shape)


@dg.op(retry_policy=dg.RetryPolicy(max_retries=3))
def ask_for_an_unknown_model(context: dg.OpExecutionContext, gpu_services: GpuServicesResource) -> None:
    """Fails for good, under a policy that would retry it."""
    mark(context, "attempt")
    with gpu_services.for_run(context) as run:
        run.embedding.embed(["acute kidney injury"], model="no-such-model")


@dg.op
def call_until_the_breaker_opens(context: dg.OpExecutionContext, gpu_services: GpuServicesResource) -> None:
    """Goes on after the faults that open the breaker; the call that finds it open ends the step."""
    mark(context, "attempt")
    with gpu_services.for_run(context) as run:
        while not _fails_at_the_network(run):
            pass


def _fails_at_the_network(run: RunServices) -> bool:
    try:
        run.embedding.embed(["acute kidney injury"], timeout=5.0)
    except medkg.CircuitOpenError:
        raise
    except medkg.ServiceUnavailableError:
        return False
    return True


def network_job() -> dg.JobDefinition:
    """One call, in its own process."""

    @dg.job(executor_def=QUICK, resource_defs={"gpu_services": GpuServicesResource()})
    def network() -> None:
        embed_once()

    return network


def breaker_job() -> dg.JobDefinition:
    """Calls that meet an open breaker."""

    @dg.job(executor_def=QUICK, resource_defs={"gpu_services": GpuServicesResource()})
    def breaker() -> None:
        call_until_the_breaker_opens()

    return breaker


def unknown_model_job() -> dg.JobDefinition:
    """A failure that waiting does not mend."""

    @dg.job(executor_def=QUICK, resource_defs={"gpu_services": GpuServicesResource()})
    def unknown_model() -> None:
        ask_for_an_unknown_model()

    return unknown_model


@dg.op
def blocked_call(context: dg.OpExecutionContext, gpu_services: GpuServicesResource) -> None:
    """Waits in a call that nobody answers."""
    mark(context, "blocked")
    with gpu_services.for_run(context) as run:
        run.embedding.embed(["acute kidney injury"])


def blocked_job() -> dg.JobDefinition:
    """One call that nobody answers."""

    @dg.job(executor_def=QUICK, resource_defs={"gpu_services": GpuServicesResource()})
    def blocked() -> None:
        blocked_call()

    return blocked


deployment = dg.Definitions(
    jobs=[
        make()
        for make in (
            lost_gpu_job,
            lost_gpu_in_process_job,
            lost_gpu_stock_job,
            lost_gpu_unguarded_job,
            stock_at_work_job,
            plain_failure_job,
            blocked_job,
        )
    ],
    sensors=[
        tells_failures,
        gpu_health_sensor(minimum_interval_seconds=1, lost_after=2, ready_after=2),
    ],
    resources={"gpu_services": GpuServicesResource(address=dg.EnvVar("MEDKG_TEST_SERVER"))},
)
"""What the webserver and the daemon load; the sensor of the GPUs' health is off until a test turns it on."""
