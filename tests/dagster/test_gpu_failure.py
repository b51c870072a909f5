"""A GPU failure fails the run at once and is never retried; the fault is real: a server without the GPU it was told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from medkg.local import LocalServer

    from .conftest import Lab, Outcome

CALLER = "embed_beside_a_sibling"
pytestmark = [pytest.mark.requirement("isolation 11.1"), pytest.mark.requirement("isolation 11.4")]


@pytest.fixture(scope="module")
def server_without_gpu(start_server: Callable[..., LocalServer]) -> Iterator[LocalServer]:
    """A server that was told to use CUDA and sees none, on a machine with a GPU too."""
    server = start_server(
        services=("gpu", "embedding"),
        reranking_models={},
        device="cuda",
        env={"CUDA_VISIBLE_DEVICES": ""},
    )
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _pool(lab: Lab) -> None:
    storage = lab.instance.event_log_storage
    storage.delete_concurrency_limit("gpu")  # with the slots that a test before this one may have left taken
    storage.set_concurrency_slots("gpu", 2)


def assert_failed_at_once(lab: Lab, outcome: Outcome, step: str) -> str:
    """The run failed, once, with nothing retried, nothing started after, and its slots free. Returns the reason."""
    assert outcome.status == "FAILURE"
    assert lab.left("embed") == 1, "the step that failed was run again"
    assert lab.left("sibling-done") == 0, "the sibling was not interrupted"
    assert lab.left("after-sibling-done") == 0
    assert outcome.of("STEP_START", "after_sibling") == []
    assert outcome.of("STEP_RESTARTED") == []
    assert outcome.tags["dagster/max_retries"] == "0"
    assert lab.instance.event_log_storage.get_concurrency_info("gpu").claimed_slots == []
    message = outcome.reason()
    assert f"GPU failure in step {step}: run failed, no retry" in message
    return message


def test_under_the_multiprocess_executor_the_sibling_is_interrupted_and_nothing_retried(
    lab: Lab, server_without_gpu: LocalServer
) -> None:
    address = server_without_gpu.address
    outcome = lab.run("gpu_job", services={"address": address, "tenant": "clinic"})
    message = assert_failed_at_once(lab, outcome, CALLER)
    failure = outcome.failure(CALLER)
    assert failure["medkg/failure_class"] == "GPU"
    assert failure["medkg/error.code"] == "FAILED_PRECONDITION"
    assert failure["medkg/error.reason"] == "GPU_UNAVAILABLE"
    assert failure["medkg/error.attempts"] == 1
    assert address.removeprefix("http://") in message
    assert failure["medkg/error.request_id"] in message


def test_in_process_it_does_the_same(lab: Lab, server_without_gpu: LocalServer) -> None:
    (lab.marks / "sibling").touch()
    services = {"address": server_without_gpu.address, "tenant": "clinic"}
    outcome = lab.run("stock_gpu_job", services=services, execution={"in_process": {}})
    assert_failed_at_once(lab, outcome, CALLER)


def test_an_op_that_lets_the_clients_error_through_is_caught_before_its_policy_retries(
    lab: Lab, server_without_gpu: LocalServer
) -> None:
    services = {"address": server_without_gpu.address, "tenant": "clinic"}
    outcome = lab.run("raw_gpu_job", services=services)
    assert_failed_at_once(lab, outcome, f"raw_{CALLER}")


def test_outside_a_main_thread_it_does_the_same(lab: Lab, server_without_gpu: LocalServer) -> None:
    services = {"address": server_without_gpu.address, "tenant": "clinic"}
    with ThreadPoolExecutor(1) as threads:
        outcome = threads.submit(lab.run, "gpu_job", services=services).result()
    assert_failed_at_once(lab, outcome, CALLER)
