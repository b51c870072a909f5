"""A fault of the network is retried by Dagster, a fault that waiting does not mend is not, and Terminate is heard."""

from __future__ import annotations

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import dagster as dg
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from medkg.local import LocalServer

    from .conftest import Lab

DEADLINE = 90.0
QUICK = {"timeout": 5.0, "connect_timeout": 1.0, "tenant": "clinic"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.requirement("isolation 11.1")
@pytest.mark.requirement("isolation 11.4")
def test_a_step_is_retried_until_the_server_is_up(lab: Lab, start_server: Callable[..., LocalServer]) -> None:
    port = free_port()

    def up_for_retry() -> bool:
        runs = lab.instance.get_run_records(limit=1)
        kind = dg.DagsterEventType.STEP_UP_FOR_RETRY
        return any(lab.instance.get_records_for_run(r.dagster_run.run_id, of_type=kind).records for r in runs)

    def start_after_the_first_attempt() -> LocalServer:
        wait_until(up_for_retry, "the step was not put up for retry")
        return start_server(port=port, services=("gpu", "embedding"), reranking_models={})

    with ThreadPoolExecutor(1) as helper:
        starting = helper.submit(start_after_the_first_attempt)
        services = {"address": f"http://127.0.0.1:{port}", "step_retries": 30, **QUICK}
        outcome = lab.run("network_job", services=services)
        starting.result().stop()
    assert outcome.status == "SUCCESS"
    assert lab.left("attempt") >= 2
    retry = outcome.of("STEP_UP_FOR_RETRY", "embed_once")[0].step_retry_data
    assert retry.seconds_to_wait is not None
    assert retry.seconds_to_wait > 0
    assert retry.error is not None
    assert retry.error.cause is not None
    assert "Network failure in step embed_once" in retry.error.cause.message
    (end,) = outcome.of("STEP_OUTPUT", "embed_once")
    assert end.is_successful_output


@pytest.mark.requirement("isolation 11.2")
@pytest.mark.requirement("isolation 11.4")
def test_an_open_breaker_leaves_the_step_with_its_cooldown_as_the_wait(lab: Lab) -> None:
    outcome = lab.run(
        "breaker_job",
        services={
            "address": f"http://127.0.0.1:{free_port()}",
            "step_retries": 1,
            "breaker_failures": 2,
            "breaker_cooldown": 3.0,
            **QUICK,
        },
    )
    assert outcome.status == "FAILURE"
    assert lab.left("attempt") == 2
    (retry,) = outcome.of("STEP_UP_FOR_RETRY")
    wait = retry.step_retry_data.seconds_to_wait
    assert wait is not None
    assert 0 < wait <= 3.0
    failure = outcome.failure("call_until_the_breaker_opens")
    assert failure["medkg/failure_class"] == "NETWORK"
    assert failure["medkg/error.breaker_state"].lower() == "open"


@pytest.mark.requirement("isolation 11.4")
def test_a_fault_that_waiting_does_not_mend_is_not_retried(lab: Lab, server: LocalServer) -> None:
    outcome = lab.run("unknown_model_job", services={"address": server.address, "tenant": "clinic"})
    assert outcome.status == "FAILURE"
    assert lab.left("attempt") == 1
    assert outcome.of("STEP_UP_FOR_RETRY") == []
    failure = outcome.failure("ask_for_an_unknown_model")
    assert failure["medkg/failure_class"] == "INPUT"
    assert failure["medkg/error.reason"] == "MODEL_NOT_FOUND"
    assert "dagster/max_retries" not in outcome.tags


def test_terminate_interrupts_a_step_that_waits_in_a_call(lab: Lab) -> None:
    with socket.socket() as silent, ThreadPoolExecutor(1) as helper:  # accepts, and never says a word
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(DEADLINE)

        def terminate_when_the_call_is_on_its_way() -> bytes:
            connection, _ = silent.accept()
            with connection:
                greeting = connection.recv(3)
                os.kill(os.getpid(), signal.SIGTERM)  # what Kubernetes sends to a run's process, which is this one
                wait_until(lambda: connection.recv(1024) == b"", "the step goes on")
                return greeting

        terminating = helper.submit(terminate_when_the_call_is_on_its_way)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        services = {"address": address, "timeout": 3600.0, "tenant": "clinic"}
        outcome = lab.run("blocked_job", services=services)
        assert terminating.result() == b"PRI"  # HTTP/2's
    assert outcome.status in {"FAILURE", "CANCELED"}
    (failure,) = outcome.of("STEP_FAILURE", "blocked_call")
    error = failure.step_failure_data.error
    assert error is not None
    assert error.cls_name in {"DagsterExecutionInterruptedError", "KeyboardInterrupt"}
