"""Forked children use a client that their parent has used, and never hang."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from medkg.local import LocalServer

PRELUDE = """
    import os, sys, threading, time, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 on: fork in a process with threads, which is the point
    import medkg

    def in_child(work):
        '''Runs work in a forked child; gives what it returned, as text.'''
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            try:
                answer = str(work())
            except BaseException as error:
                answer = f"{type(error).__name__}: {error}"
            os.write(write, answer.encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            answer = pipe.read()
        assert os.waitpid(child, 0)[1] == 0
        return answer

    def connect():
        return medkg.connect(address=sys.argv[1], tenant="demo", timeout=20)
"""

CONNECTED = """
    services = connect()
"""

CALL = "services.gpu.status().state"


def run(script: Callable[..., Any], server: LocalServer, body: str, *, connected: str = CONNECTED) -> list[str]:
    done = script(PRELUDE + connected + body, server.address).finish(limit=90.0)
    assert done.status == 0, done.err
    return done.out.splitlines()


@pytest.mark.fault(
    "Processes",
    "a process forks after it has used a client, which is idle",
    "the children's calls and the parent's are answered over connections of their own; none hangs",
)
def test_a_child_of_an_idle_parent(
    script: Callable[..., Any], server: LocalServer, seen: Callable[[str], None]
) -> None:
    lines = run(
        script,
        server,
        f"""
    print({CALL})
    for _ in range(10):
        print(in_child(lambda: {CALL}))
    print({CALL})
    """,
    )
    assert lines == ["ready"] * 12
    seen("10 children, all answered")


@pytest.mark.fault(
    "Processes",
    "a process forks while threads of it are in the middle of calls",
    "the children's calls are answered, and the parent's go on; none hangs",
)
def test_a_child_of_a_parent_that_is_in_the_middle_of_calls(
    script: Callable[..., Any], server: LocalServer, seen: Callable[[str], None]
) -> None:
    lines = run(
        script,
        server,
        f"""
    stop = threading.Event()
    made = 0
    def busy():
        global made
        while not stop.is_set():
            services.gpu.status()
            made += 1
    threads = [threading.Thread(target=busy) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        print(in_child(lambda: {CALL}))
    before = made
    while made == before:
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    print({CALL})
    """,
    )
    assert lines == ["ready"] * 21
    seen("20 children of a parent with 4 busy threads, all answered")


def importing(fault: str) -> pytest.MarkDecorator:
    return pytest.mark.fault(
        "Processes",
        fault,
        "the fork waits for the import, so that no child inherits its lock; the child's call is answered",
    )


@pytest.mark.parametrize(
    ("work", "inside"),
    [
        pytest.param("connect()", "client", marks=importing("a process forks while a thread imports medkg's clients")),
        pytest.param(CALL, "results", marks=importing("a process forks while a thread's first call imports results")),
    ],
    ids=["clients", "results"],
)
def test_a_child_of_a_parent_that_is_in_the_middle_of_an_import(
    script: Callable[..., Any], server: LocalServer, seen: Callable[[str], None], work: str, inside: str
) -> None:
    lines = run(
        script,
        server,
        f"""
    importing = threading.Event()
    def dawdle(event, arguments):
        # Inside the package, whose lock the thread holds: that lock is what a child would wait for.
        if event == "import" and arguments[0].startswith("medkg.{inside}.") and threading.current_thread() is first:
            importing.set()
            time.sleep(0.5)
    first = threading.Thread(target=lambda: {work})
    sys.addaudithook(dawdle)
    first.start()
    print(importing.wait(20))
    print(in_child(lambda: connect().gpu.status().state))
    """,
        connected=CONNECTED if work == CALL else "",
    )
    assert lines == ["True", "ready"]
    seen("answered")


def test_calls_import_nothing_but_before_the_first(script: Callable[..., Any], server: LocalServer) -> None:
    # What the first call imports is imported under the lock for which a fork waits.
    lines = run(
        script,
        server,
        """
    import asyncio
    aservices = medkg.connect_async(services.config)
    services.gpu.status()
    imported = []
    sys.addaudithook(lambda event, arguments: event == "import" and imported.append(arguments[0]))

    def refused(call):
        try:
            call()
        except medkg.MedkgError as error:
            return type(error).__name__

    async def awaited():
        vectors = (await aservices.embedding.embed(["a text"])).vectors
        return len(await aservices.vector.search("imports", vectors, k=1))

    vectors = services.embedding.embed(["a text"]).vectors
    services.vector.create_collection("imports", dimension=vectors.shape[1])
    services.vector.upsert("imports", ["a"], vectors, payloads=[{"page": 1}])
    services.vector.fetch("imports", ["a"])
    services.vector.statistics("imports")
    services.reranking.rerank("a question", ["a text", "another"])
    services.gpu.endpoints()
    page = medkg.filters.Equals("page", 1)
    print(services.vector.search("imports", vectors, k=1, filter=page)[0][0].id, asyncio.run(awaited()))
    print(refused(lambda: services.embedding.embed([""])), refused(lambda: services.vector.search("no", vectors, k=1)))
    print(imported)
    """,
    )
    assert lines == ["a 1", "EmbeddingValidationError CollectionNotFoundError", "[]"]


def test_a_child_of_a_child(script: Callable[..., Any], server: LocalServer) -> None:
    lines = run(
        script,
        server,
        f"""
    {CALL}
    print(in_child(lambda: in_child(lambda: in_child(lambda: {CALL}) + {CALL}) + {CALL}) + {CALL})
    """,
    )
    assert lines == ["ready" * 4]


def test_a_child_may_drop_what_it_inherited_and_leave_normally(script: Callable[..., Any], server: LocalServer) -> None:
    lines = run(
        script,
        server,
        f"""
    import gc
    {CALL}
    def leave():
        global services
        services.close()
        del services
        gc.collect()
        return medkg.connect(address=sys.argv[1], tenant="demo").gpu.status().state
    for _ in range(5):
        print(in_child(leave), flush=True)
    child = os.fork()
    if child == 0:
        sys.exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """,
    )
    assert lines == ["ready"] * 5 + ["7"]


def test_children_give_their_calls_names_of_their_own(script: Callable[..., Any], server: LocalServer) -> None:
    lines = run(
        script,
        server,
        """
    services.gpu.status()
    def name():
        try:
            services.embedding.embed([""])
        except medkg.ValidationError as error:
            return error.trace_id + error.request_id
    print(*(in_child(name) for _ in range(5)), name())
    """,
    )
    names = lines[0].split()
    assert len(set(names)) == 6
    assert all(len(name) == 64 for name in names)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_clients_travel_to_the_processes_of_a_pool(
    script: Callable[..., Any], server: LocalServer, method: str
) -> None:
    lines = run(
        script,
        server,
        f"""
    import concurrent.futures, multiprocessing, operator
    if __name__ == "__main__":
        services.gpu.status()
        context = multiprocessing.get_context({method!r})
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            for status in pool.map(operator.methodcaller("status"), [services.gpu] * 6):
                print(status.state)
    """,
    )
    assert lines == ["ready"] * 6


def test_asyncio_in_a_child_of_a_parent_that_used_asyncio(script: Callable[..., Any], server: LocalServer) -> None:
    lines = run(
        script,
        server,
        """
    import asyncio
    aservices = medkg.connect_async(services.config)
    async def call():
        return (await aservices.gpu.status()).state
    print(asyncio.run(call()))
    for _ in range(5):
        print(in_child(lambda: asyncio.run(call())))
    """,
    )
    assert lines == ["ready"] * 6
