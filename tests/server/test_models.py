"""Models come, go and are exchanged while the server runs, and nobody who calls sees more of it than another digest."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import medkg

from .checkpoints import Written, write_bert
from .conftest import TENANT, Refusal
from .operators import BOTH, TEXT, Operated, eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer

OPERATORS = "operators are served on "


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What --model-root names."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def small(root: Path, minilm_dir: Path) -> Callable[..., Written]:
    """Writes a small checkpoint below the root."""

    def write(name: str, seed: int, hidden: int = 32, *, sparse: bool = False) -> Written:
        return write_bert(root / name, minilm_dir, seed=seed, hidden=hidden, sparse=sparse)

    return write


@pytest.fixture
def operate(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any, root: Path
) -> Callable[..., Operated]:
    """Starts a server that operators may talk to, with the two small roles unless told otherwise."""
    servers: list[LocalServer] = []

    def start(arguments: tuple[str, ...] = (), **options: Any) -> Operated:
        admin = ["--admin-listen", "127.0.0.1:0", "--model-root", str(root)]
        options = {"services": BOTH, "data_dir": None, **options}
        server = start_server(arguments=[*admin, *arguments], **options)
        servers.append(server)
        [line] = [line for line in server.events() if str(line.get("message")).startswith(OPERATORS)]
        admin_channel = grpc.insecure_channel(str(line["address"]))
        return Operated(wire, server, open_channel(server), admin_channel)

    yield start
    for server in servers:
        server.stop()


def health(channel: grpc.Channel, service: str) -> bool:
    request = health_pb2.HealthCheckRequest(service=f"medkg.v1.{service}")
    status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=20).status
    return bool(status == health_pb2.HealthCheckResponse.SERVING)


@pytest.mark.requirement("isolation 2.3")
def test_a_model_is_exchanged_under_load_and_every_answer_is_whole(
    operate: Callable[..., Operated], small: Callable[..., Written]
) -> None:
    one, two = small("exchange/one", seed=1), small("exchange/two", seed=2, hidden=48)
    texts = (TEXT, "A second text.")
    operated = operate(embedding_models={"main": one.folder}, reranking_models={}, services=("embedding",))
    expected = dict([operated.vectors("main", texts)])
    operated.load("main", "exchange/two")
    expected |= dict([operated.vectors("main", texts)])
    assert set(expected) == {one.digest, two.digest}

    done = threading.Event()

    def hammer() -> dict[str, int]:
        seen = dict.fromkeys(expected, 0)
        while not done.is_set():
            digest, rows = operated.vectors("main", texts)
            # Another tokenizer, dimension or weight than the digest's would show here.
            np.testing.assert_allclose(rows, expected[digest], rtol=0, atol=1e-5)
            seen[digest] += 1
        return seen

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(hammer) for _ in range(4)]
        try:
            for turn in range(10):
                model = operated.load("main", "exchange/one" if turn % 2 == 0 else "exchange/two")
                assert model.digest == (one.digest if turn % 2 == 0 else two.digest)
                assert model.dimension == (32 if turn % 2 == 0 else 48)
        finally:
            done.set()
        seen = [call.result(60) for call in calls]
    assert all(sum(one_caller[digest] for one_caller in seen) > 0 for digest in expected)


def test_an_unloaded_model_says_so_until_it_is_loaded_again(
    operate: Callable[..., Operated], small: Callable[..., Written]
) -> None:
    written = small("unloaded/a", seed=3)
    operated = operate(
        embedding_models={"a": written.folder, "b": written.folder}, reranking_models={}, services=BOTH[:1]
    )
    assert operated.told("a").memory_bytes == written.bytes
    assert operated.unload("a").state == operated.wire.types.MODEL_STATE_UNLOADED
    refusal = operated.refused(lambda: operated.embed("a"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY")
    assert refusal.retry_seconds
    assert operated.embed("b").model == "b"
    assert health(operated.channel, "EmbeddingService")
    request = operated.wire.embedding.EmbeddingServiceListModelsRequest()
    listed = operated.embedding.ListModels(request, metadata=[TENANT], timeout=20).models
    assert [(m.name, m.state, bool(m.detail)) for m in listed] == [
        ("a", operated.wire.types.MODEL_STATE_UNLOADED, True),
        ("b", operated.wire.types.MODEL_STATE_READY, False),
    ]
    # Without a folder it is the one it was, on the command line too.
    assert operated.load("a").digest == written.digest
    assert operated.embed("a").model == "a"
    assert operated.refused(lambda: operated.unload("c")).reason == "MODEL_NOT_FOUND"


def test_a_bad_checkpoint_leaves_the_one_that_served(
    operate: Callable[..., Operated], small: Callable[..., Written], root: Path
) -> None:
    good, cut = small("bad/good", seed=4), small("bad/cut", seed=5)
    weights = cut.folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (root / "bad" / "empty").mkdir()
    other = small("bad/other", seed=6)
    operated = operate(embedding_models={"main": good.folder}, reranking_models={}, services=BOTH[:1])
    for directory, fields, told in (
        ("bad/cut", {}, "model.safetensors"),
        ("bad/empty", {}, "config.json"),
        ("bad/other", {"sha256": good.digest}, other.digest),
    ):
        refusal = operated.refused(lambda d=directory, f=fields: operated.load("main", d, **f))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_LOAD_FAILED")
        assert told in refusal.message
        assert good.digest in refusal.message or not fields
        assert operated.vectors("main")[0] == good.digest
        model = operated.told("main")
        assert (model.state, model.digest) == (operated.wire.types.MODEL_STATE_READY, good.digest)
        assert told in model.detail
        assert health(operated.channel, "EmbeddingService")
    # A name that nobody had has nothing to go back to.
    assert operated.refused(lambda: operated.load("new", "bad/cut")).reason == "MODEL_LOAD_FAILED"
    assert operated.told("new") is None
    pinned = operated.load("main", "bad/other", sha256=other.digest.upper(), revision="r7")
    assert (pinned.digest, pinned.revision, pinned.detail) == (other.digest, "r7", "")


def test_golden_values_must_match_before_a_model_serves(
    operate: Callable[..., Operated], small: Callable[..., Written], root: Path, reranker_dir: Path
) -> None:
    first, second = small("golden/first", seed=7), small("golden/second", seed=8)
    (root / "golden" / "reranker").symlink_to(reranker_dir)
    operated = operate(embedding_models={"main": first.folder})
    texts = (TEXT, "Aspirin inhibits cyclooxygenase.")
    _, rows = operated.vectors("main", texts)
    golden = {"texts": texts, "vectors": rows.tolist(), "cosine": 0.99999}
    for written in (first, second):
        (written.folder / "medkg-golden.json").write_text(json.dumps(golden))
    assert operated.load("main", "golden/first").digest == first.digest
    refusal = operated.refused(lambda: operated.load("main", "golden/second"))
    assert refusal.reason == "MODEL_LOAD_FAILED"
    assert "medkg-golden.json: vectors[0]" in refusal.message
    assert operated.vectors("main")[0] == first.digest

    score = operated.score("Which drug?", "Metformin.")
    own = root / "golden" / "own"
    own.mkdir()
    for path in reranker_dir.iterdir():
        (own / path.name).symlink_to(path)
    golden = {"pairs": [["Which drug?", "Metformin."]], "scores": [score]}
    (own / "medkg-golden.json").write_text(json.dumps(golden))
    assert operated.load("own", "golden/own", "reranking").kind == operated.wire.types.MODEL_KIND_RERANKER
    golden["scores"] = [score + 0.01]
    (own / "medkg-golden.json").write_text(json.dumps(golden))
    assert "scores[0]" in operated.refused(lambda: operated.load("own", role="reranking")).message


@pytest.mark.requirement("isolation 2.3")
def test_the_model_asked_for_longest_ago_makes_room_and_comes_back_when_called(
    operate: Callable[..., Operated], small: Callable[..., Written]
) -> None:
    names = ("default", "b", "c")
    written = {name: small(f"room/{name}", seed=20 + at) for at, name in enumerate(names)}
    budget = 2 * written["b"].bytes + 1000
    folders = {name: one.folder for name, one in written.items()}
    operated = operate(
        ("--model-memory", str(budget)), embedding_models=folders, reranking_models={}, services=BOTH[:1]
    )
    # At the start the last one found no room.
    assert [operated.state(name) for name in names] == ["ready", "ready", "unloaded"]
    assert "--model-memory" in operated.told("c").detail
    assert health(operated.channel, "EmbeddingService")
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: operated.vectors("c")[0], range(16)))
    assert set(answers) == {written["c"].digest}
    assert [operated.state(name) for name in names] == ["ready", "unloaded", "ready"]
    assert sum(line["model"] == "c" for line in operated.lines("model ready")) == 1
    assert operated.vectors("b")[0] == written["b"].digest
    assert [operated.state(name) for name in names] == ["ready", "ready", "unloaded"]
    held = sum(operated.told(name).memory_bytes for name in names)
    assert 0 < held <= budget


def test_a_sparse_call_without_a_name_waits_for_the_sparse_model(
    operate: Callable[..., Operated], small: Callable[..., Written]
) -> None:
    dense, sparse = small("sparse/dense", 81), small("sparse/one", 82, sparse=True)
    other = small("sparse/other", 83, hidden=64)
    folders = {"dense": dense.folder, "sparse": sparse.folder, "other": other.folder}
    # Room for the default and one of the others; the word table of the sparse one counts twice.
    budget = dense.bytes + 2 * sparse.bytes + 1000
    operated = operate(
        ("--model-memory", str(budget)), embedding_models=folders, reranking_models={}, services=BOTH[:1], wait=False
    )
    request = operated.wire.embedding.GenerateSparseEmbeddingsRequest(texts=[TEXT])

    def ask() -> str:
        return str(operated.embedding.GenerateSparseEmbeddings(request, metadata=[TENANT], timeout=60).model)

    def answered() -> bool:
        try:
            return ask() == "sparse"
        except grpc.RpcError as error:
            refusal = Refusal(error)
            # While it loads, and so while nobody knows that it is sparse.
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY")
            assert refusal.retry_seconds
            return False

    eventually(answered)
    eventually(lambda: operated.state("other") == "unloaded")  # it found no room
    assert operated.embed("other").model == "other"
    assert operated.state("sparse") == "unloaded"
    assert ask() == "sparse"
    assert operated.state("other") == "unloaded"
    operated.unload("sparse")
    refusal = operated.refused(ask)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY")
    operated.load("sparse", "sparse/dense")
    refusal = operated.refused(ask)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


def test_what_can_never_fit_is_refused_as_a_limit_of_the_server(
    operate: Callable[..., Operated], small: Callable[..., Written], root: Path
) -> None:
    little, much = small("limit/little", seed=30), small("limit/much", seed=31, hidden=128)
    operated = operate(
        ("--model-memory", "8MiB"), embedding_models={"little": little.folder}, reranking_models={}, services=BOTH[:1]
    )
    refusal = operated.refused(lambda: operated.load("much", "limit/much"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MODEL_MEMORY_FULL")
    assert refusal.retry_seconds is None
    assert str(much.bytes) in refusal.message
    assert operated.embed("little").model == "little"

    at_start = operate(
        ("--model-memory", "8MiB"), embedding_models={"much": much.folder}, reranking_models={}, services=BOTH[:1]
    )
    assert at_start.state("much") == "failed"
    assert not health(at_start.channel, "EmbeddingService")
    config = medkg.ClientConfig(address=at_start.server.address, tenant="raw", max_attempts=1)
    with medkg.EmbeddingClient(config) as client, pytest.raises(medkg.RateLimitedError, match="model-memory"):
        client.embed([TEXT])


def test_models_are_told_with_what_is_known_of_them(
    operate: Callable[..., Operated], minilm_dir: Path, tmp_path: Path
) -> None:
    operated = operate(embedding_models={"minilm": minilm_dir, "broken": tmp_path})
    t = operated.wire.types
    model = operated.told("minilm")
    assert (model.dimension, model.max_tokens, model.normalized, model.is_default) == (384, 256, True, True)
    assert (model.pooling, model.compute_dtype, model.device) == (t.POOLING_MEAN, t.DATA_TYPE_F32, "cpu")
    assert (model.kind, model.architecture) == (t.MODEL_KIND_DENSE, "bert")
    # Every parameter but the pooler's, in f32; position ids are no parameters.
    assert 88_000_000 < model.memory_bytes < 91_000_000
    broken = operated.told("broken")
    assert (broken.state, broken.dimension, broken.is_default) == (t.MODEL_STATE_FAILED, 0, False)
    assert "config.json" in broken.detail
    assert not health(operated.channel, "EmbeddingService")
    assert health(operated.channel, "RerankingService")
    assert operated.told("medkg-reranker-minilm", "reranking").kind == t.MODEL_KIND_RERANKER


def test_operators_are_let_in_by_their_own_door_only(
    operate: Callable[..., Operated], small: Callable[..., Written], root: Path, tmp_path: Path
) -> None:
    written = small("door/a", seed=40)
    (root / "door" / "out").symlink_to(tmp_path)
    operated = operate(embedding_models={"a": written.folder}, reranking_models={}, services=BOTH[:1])
    m = operated.wire.model
    unimplemented = grpc.StatusCode.UNIMPLEMENTED
    beside = m.ModelServiceStub(operated.channel)
    request = m.ModelServiceListModelsRequest()
    refusal = operated.refused(lambda: beside.ListModels(request, metadata=[TENANT], timeout=20))
    assert refusal.code == unimplemented
    inside = operated.wire.embedding.EmbeddingServiceStub(operated.admin_channel)
    texts = operated.wire.embedding.GenerateEmbeddingsRequest(texts=["x"])
    assert (
        operated.refused(lambda: inside.GenerateEmbeddings(texts, metadata=[TENANT], timeout=20)).code == unimplemented
    )
    assert operated.refused(lambda: operated.models.ListModels(request, timeout=20)).reason == "TENANT_MISSING"
    assert health(operated.admin_channel, "EmbeddingService")
    for field, call in (
        ("directory", lambda: operated.load("a", "../")),
        ("directory", lambda: operated.load("a", "/etc")),
        ("directory", lambda: operated.load("a", "door/out")),
        ("directory", lambda: operated.load("a", "door/nowhere")),
        ("name", lambda: operated.load("a b", "door/a")),
        ("name", lambda: operated.load("", "door/a")),
        ("name", lambda: operated.load("x" * 64, "door/a")),
        ("sha256", lambda: operated.load("a", "door/a", sha256="12")),
        ("revision", lambda: operated.load("a", "door/a", revision="a b")),
        ("role", lambda: operated.load("a", "door/a", "reranking")),
        ("role", lambda: operated.load("a", "door/a", "unspecified")),
    ):
        refusal = operated.refused(call)
        assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field]), refusal.message
        assert str(tmp_path) not in refusal.message
    assert operated.refused(lambda: operated.load("unknown")).reason == "MODEL_NOT_FOUND"
    assert operated.vectors("a")[0] == written.digest


def test_every_change_leaves_a_line_that_says_who_asked(
    operate: Callable[..., Operated], small: Callable[..., Written]
) -> None:
    written = small("audit/a", seed=50)
    operated = operate(embedding_models={"a": written.folder}, reranking_models={}, services=BOTH[:1])
    m = operated.wire.model
    metadata = [("x-tenant-id", "operations"), ("x-request-id", "change-17")]
    request = m.LoadModelRequest(role=m.MODEL_ROLE_EMBEDDING, name="b", directory="audit/a")
    operated.models.LoadModel(request, metadata=metadata, timeout=60)
    refusal = operated.refused(lambda: operated.load("b", "audit/none"))
    assert refusal.fields == ["directory"]
    [done] = operated.lines("models changed")
    assert (done["tenant"], done["request_id"]) == ("operations", "change-17")
    assert (done["action"], done["model"], done["directory"]) == ("LoadModel", "b", "audit/a")
    assert (done["digest"], done["outcome"]) == (written.digest, "done")
    [not_done] = operated.lines("models not changed")
    assert (not_done["tenant"], not_done["outcome"]) == (TENANT[1], "refused")


def write_models(path: Path, *models: dict[str, Any]) -> None:
    """Puts a new version of the file in place at once."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"models": models}))
    fresh.replace(path)


@pytest.mark.requirement("isolation 4.3")
@pytest.mark.requirement("isolation 3.3")
def test_the_models_file_is_followed_and_a_mistake_in_it_changes_nothing(
    operate: Callable[..., Operated], small: Callable[..., Written], tmp_path: Path
) -> None:
    one, two = small("file/one", seed=60), small("file/two", seed=61, hidden=48)
    path = tmp_path / "models.json"
    first = {"role": "embedding", "name": "first", "directory": str(one.folder), "revision": "r1"}
    write_models(path, first)
    operated = operate(("--models-file", str(path)), embedding_models={}, reranking_models={}, services=BOTH[:1])
    eventually(lambda: operated.state("first") == "ready")
    assert operated.told("first").revision == "r1"
    assert operated.embed().model == "first"

    # Added, and then changed with a pooling and a length of its own.
    second = {"role": "embedding", "name": "second", "directory": str(two.folder), "normalize": True, "pooling": "cls"}
    write_models(path, first, second)
    eventually(lambda: operated.state("second") == "ready")
    model = operated.told("second")
    assert (model.normalized, model.pooling) == (True, operated.wire.types.POOLING_CLS)
    np.testing.assert_allclose(np.linalg.norm(operated.vectors("second")[1], axis=1), 1, atol=1e-5)

    # A mistake: nothing moves, and the log names the field.
    write_models(path, {**second, "sha265": "typo"})
    eventually(lambda: bool(operated.lines("models file not applied")))
    [line] = operated.lines("models file not applied")
    assert str(line["problem"]).startswith("models[0].sha265:")
    assert (operated.state("first"), operated.state("second")) == ("ready", "ready")

    # A digest that is not that of the weights: what served goes on.
    write_models(path, {**first, "sha256": two.digest, "revision": "r2"}, second)
    eventually(lambda: two.digest in operated.told("first").detail)
    assert operated.vectors("first")[0] == one.digest
    assert operated.told("first").revision == "r1"

    # The first goes, the second is the default from then on; nobody who names no model sees a gap.
    done = threading.Event()

    def hammer() -> list[str]:
        names = []
        while not done.is_set():
            names.append(operated.embed().model)
        return [*names, operated.embed().model]

    with ThreadPoolExecutor(1) as pool:
        calls = pool.submit(hammer)
        third = {"role": "embedding", "name": "third", "directory": str(two.folder), "default": True}
        write_models(path, third)
        eventually(lambda: operated.state("first") == "" and operated.embed().model == "third")
        done.set()
        assert calls.result(60)[-1] == "third"
    assert operated.refused(lambda: operated.embed("second")).reason == "MODEL_NOT_FOUND"


def test_a_config_map_that_exchanges_its_links_is_followed(
    operate: Callable[..., Operated], small: Callable[..., Written], tmp_path: Path
) -> None:
    written = small("map/a", seed=70)
    model = {"role": "embedding", "name": "a", "directory": str(written.folder)}
    for version, models in (("v1", [model]), ("v2", [model, {**model, "name": "b"}])):
        (tmp_path / version).mkdir()
        (tmp_path / version / "models.json").write_text(json.dumps({"models": models}))
    # As the kubelet does it: models.json -> ..data/models.json, ..data -> v1, and then ..data is exchanged.
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "models.json").symlink_to("..data/models.json")
    operated = operate(
        ("--models-file", str(tmp_path / "models.json")),
        embedding_models={},
        reranking_models={},
        services=BOTH[:1],
    )
    eventually(lambda: operated.state("a") == "ready")
    (tmp_path / "..data_tmp").symlink_to("v2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    eventually(lambda: operated.state("b") == "ready")
    assert operated.embed("b").model_digest == written.digest


def test_a_models_file_with_a_mistake_ends_the_start(gpu_server_binary: Path, tmp_path: Path) -> None:
    import subprocess

    path = tmp_path / "models.json"
    path.write_text('{"models": [{"role": "embedding", "name": "a"}]}')
    command = [gpu_server_binary, "--services", "embedding", "--device", "cpu", "--models-file", path]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert outcome.returncode == 64
    assert "models[0].directory: is missing" in outcome.stderr
