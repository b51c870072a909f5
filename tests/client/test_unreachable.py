"""Servers that are not there: what is raised, how long it takes, and that waiting can be interrupted."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import medkg

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.requirement("isolation 6.3")
def test_nobody_listens(refusing: str) -> None:
    services = medkg.connect(address=refusing, tenant="demo", max_attempts=3, backoff_initial=0.001)
    with pytest.raises(medkg.ServiceUnavailableError, match="Connection refused") as caught:
        services.embedding.embed(["aspirin"])
    error = caught.value
    assert isinstance(error, ConnectionError)
    assert (error.code, error.endpoint, error.attempts, error.retryable) == ("UNAVAILABLE", refusing, 3, False)


@pytest.mark.requirement("isolation 5.4")
def test_after_enough_failures_nothing_is_sent_for_a_while(refusing: str) -> None:
    services = medkg.connect(
        address=refusing, tenant="demo", max_attempts=1, breaker_failures=2, breaker_cooldown=3600.0
    )
    for _ in range(2):
        with pytest.raises(medkg.ServiceUnavailableError):
            services.gpu.status()
    # One breaker for the address, whichever service is called.
    with pytest.raises(medkg.CircuitOpenError) as caught:
        services.embedding.embed(["aspirin"])
    error = caught.value
    assert (error.attempts, error.retryable, error.breaker_state) == (0, True, "open")
    assert error.retry_after is not None
    assert 3500 < error.retry_after <= 3600


@pytest.mark.requirement("isolation 6.3")
def test_nobody_answers(silent: str) -> None:
    client = medkg.GpuClient(address=silent, tenant="demo")
    with pytest.raises(medkg.ServiceTimeoutError) as caught:
        client.status(timeout=0.2)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.code == "DEADLINE_EXCEEDED"


def test_other_threads_run_while_a_call_waits(silent: str) -> None:
    client = medkg.GpuClient(address=silent, tenant="demo")
    counted = 0
    stop = threading.Event()

    def count() -> None:
        nonlocal counted
        while not stop.is_set():
            counted += 1

    thread = threading.Thread(target=count)
    thread.start()
    before = counted
    with pytest.raises(medkg.ServiceTimeoutError):
        client.status(timeout=0.5)
    during = counted - before
    stop.set()
    thread.join()
    # A thread that is kept from running counts in hundreds; one that runs, in millions.
    assert during > 10_000


def test_many_threads_wait_side_by_side(silent: str) -> None:
    client = medkg.GpuClient(address=silent, tenant="demo", breaker_failures=1000)
    errors: list[Exception] = []

    def call() -> None:
        try:
            client.status(timeout=1.0)
        except medkg.ServiceTimeoutError as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(16)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 16
    assert time.monotonic() - begun < 16 * 1.0 / 2, "one after the other"


INTERRUPTED = """
    import os, signal, sys, threading, medkg

    class Terminated(BaseException):
        pass

    def terminate(number, frame):
        raise Terminated(number)

    signal.signal(signal.SIGTERM, terminate)
    before = signal.getsignal(signal.SIGINT)
    client = medkg.EmbeddingClient(address=sys.argv[1], tenant="demo", timeout=3600)
    print("waiting", flush=True)
    try:
        client.embed(["aspirin"] * 1000)
    except BaseException as error:
        assert signal.getsignal(signal.SIGINT) is before, "medkg installed a handler"
        print(type(error).__name__, flush=True)
"""


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "Terminated")])
def test_a_signal_interrupts_a_waiting_call(
    script: Callable[..., Any], silent: str, number: signal.Signals, raised: str
) -> None:
    running = script(INTERRUPTED, silent)
    assert running.line() == "waiting"
    time.sleep(0.3)  # into the call; a signal before it would prove nothing, but fail nothing either
    running.process.send_signal(number)
    assert running.line(limit=10.0) == raised
    done = running.finish(limit=10.0)
    assert (done.status, done.err) == (0, "")


def test_a_signal_that_is_handled_quietly_does_not_end_the_call(script: Callable[..., Any], silent: str) -> None:
    running = script(
        """
        import signal, sys, medkg
        signal.signal(signal.SIGUSR1, lambda *_: print("handled", flush=True))
        client = medkg.GpuClient(address=sys.argv[1], tenant="demo")
        print("waiting", flush=True)
        try:
            client.status(timeout=3)
        except medkg.ServiceTimeoutError:
            print("timed out", flush=True)
        """,
        silent,
    )
    assert running.line() == "waiting"
    time.sleep(0.3)
    running.process.send_signal(signal.SIGUSR1)
    assert [running.line(), running.line()] == ["handled", "timed out"]


def test_a_process_that_leaves_a_call_behind_ends(script: Callable[..., Any], silent: str) -> None:
    done = script(
        """
        import sys, threading, time, medkg
        client = medkg.GpuClient(address=sys.argv[1], tenant="demo", timeout=3600)
        threading.Thread(target=client.status, daemon=True).start()
        time.sleep(0.3)
        print("leaving")
        """,
        silent,
    ).finish(limit=20.0)
    assert (done.status, done.out) == (0, "leaving\n")
