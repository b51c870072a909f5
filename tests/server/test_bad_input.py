"""Bad input gets the error of the table, naming field and index, and the server lives on."""

from __future__ import annotations

import math
import struct
import subprocess
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from .conftest import TENANT, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from medkg.local import LocalServer

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
def embed(wire: Any, channel: grpc.Channel) -> Any:
    return wire.embedding.EmbeddingServiceStub(channel).GenerateEmbeddings


@pytest.fixture
def vectors(wire: Any, channel: grpc.Channel) -> Any:
    return wire.vector.VectorServiceStub(channel)


@pytest.fixture(autouse=True)
def _server_lives_on(wire: Any, embed: Any) -> Iterator[None]:
    yield
    answer = embed(wire.embedding.GenerateEmbeddingsRequest(texts=["still there"]), metadata=[TENANT], timeout=60)
    assert list(answer.embeddings.shape) == [1, 384]


def tensor(wire: Any, rows: list[list[float]]) -> Any:
    data = b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows)
    return wire.types.Tensor(data=data, dtype=wire.types.DATA_TYPE_F32, shape=[len(rows), len(rows[0])])


@pytest.mark.requirement("isolation 3.2")
@pytest.mark.requirement("isolation 12.5")
@pytest.mark.parametrize(
    ("texts", "field"),
    [
        ([], "texts"),
        (["fine", ""], "texts[1]"),
        (["fine", "fine", "\0\0"], "texts[2]"),
        ([" \n\t"], "texts[0]"),
        (["fine", "x" * 10_000_000], "texts[1]"),
        (["x"] * 4097, "texts"),
    ],
    ids=["empty-list", "empty-text", "only-nul", "only-space", "10-MB-text", "too-many"],
)
def test_bad_texts_are_named(wire: Any, embed: Any, refused: Any, texts: list[str], field: str) -> None:
    refusal = refused(embed, wire.embedding.GenerateEmbeddingsRequest(texts=texts))
    assert (refusal.code, refusal.reason, refusal.domain) == (INVALID, "INVALID_FIELD", "medkg")
    assert refusal.fields == [field]
    assert field in refusal.message


def test_odd_but_legal_text_is_embedded(wire: Any, embed: Any) -> None:
    family = "\U0001f468‍\U0001f469‍\U0001f467"
    texts = [f"family {family} of four", "dose\0of 5 mg", "naïve Ärzte 医学", "a" * 1000]
    answer = embed(wire.embedding.GenerateEmbeddingsRequest(texts=texts), metadata=[TENANT], timeout=60)
    assert list(answer.embeddings.shape) == [4, 384]
    values = struct.unpack(f"<{4 * 384}f", answer.embeddings.data)
    assert all(math.isfinite(value) for value in values)


def test_invalid_utf8_on_the_wire_is_named(channel: grpc.Channel, refused: Any) -> None:
    raw = channel.unary_unary("/medkg.v1.EmbeddingService/GenerateEmbeddings")
    good, bad = b"\x12\x04fine", b"\x12\x03\xff\xfe\xfd"
    refusal = refused(raw, good + good + bad)
    assert (refusal.code, refusal.reason) == (INVALID, "INVALID_FIELD")
    assert refusal.fields == ["texts[2]"]


def test_invalid_utf8_in_a_document_is_named_by_its_path(channel: grpc.Channel, refused: Any) -> None:
    raw = channel.unary_unary("/medkg.v1.RerankingService/RerankBatch")
    document = b"\x0a\x02\xff\xfe"
    query = b"\x0a\x01q" + b"\x12" + bytes([len(document)]) + document
    refusal = refused(raw, b"\x12" + bytes([len(query)]) + query)
    assert (refusal.code, refusal.fields) == (INVALID, ["queries[0].documents[0].text"])


def test_garbage_on_the_wire_is_the_callers_fault(channel: grpc.Channel, refused: Any) -> None:
    raw = channel.unary_unary("/medkg.v1.EmbeddingService/GenerateEmbeddings")
    assert refused(raw, b"\x12\xff\xff\xff\xff\x0f").code == INVALID


def test_an_oversized_message_is_out_of_range(wire: Any, embed: Any, refused: Any) -> None:
    request = wire.embedding.GenerateEmbeddingsRequest(texts=["x" * 1_000_000] * 40)
    assert refused(embed, request).code == grpc.StatusCode.OUT_OF_RANGE


@pytest.mark.requirement("isolation 3.2")
def test_an_unknown_model_lists_the_known_ones(wire: Any, embed: Any, refused: Any) -> None:
    refusal = refused(embed, wire.embedding.GenerateEmbeddingsRequest(model="gpt-5", texts=["x"]))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert "all-MiniLM-L6-v2" in refusal.message


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ([], "TENANT_MISSING"),
        ([("x-tenant-id", "")], "TENANT_INVALID"),
        ([("x-tenant-id", "a b")], "TENANT_INVALID"),
        ([("x-tenant-id", "../etc")], "TENANT_INVALID"),
        ([("x-tenant-id", "t" * 64)], "TENANT_INVALID"),
        ([("x-tenant-id", "a"), ("x-tenant-id", "b")], "TENANT_INVALID"),
    ],
)
def test_a_missing_or_malformed_tenant_is_refused(
    wire: Any, embed: Any, refused: Any, metadata: Any, reason: str
) -> None:
    refusal = refused(embed, wire.embedding.GenerateEmbeddingsRequest(texts=["x"]), metadata=metadata)
    assert (refusal.code, refusal.reason) == (INVALID, reason)
    assert refusal.fields == ["x-tenant-id"]


def test_refusing_truncation_names_the_text(wire: Any, embed: Any, refused: Any) -> None:
    options = wire.embedding.EmbeddingOptions(truncation=wire.types.TRUNCATION_REFUSE)
    request = wire.embedding.GenerateEmbeddingsRequest(texts=["short", "word " * 300], options=options)
    assert refused(embed, request).fields == ["texts[1]"]


def test_truncation_is_told(wire: Any, embed: Any) -> None:
    request = wire.embedding.GenerateEmbeddingsRequest(texts=["short", "word " * 300])
    answer = embed(request, metadata=[TENANT], timeout=60)
    assert list(answer.truncated) == [1]
    assert list(answer.token_counts) == [3, 256]


def test_an_expired_deadline_is_not_computed(wire: Any, embed: Any, refused: Any) -> None:
    request = wire.embedding.GenerateEmbeddingsRequest(texts=["word " * 200] * 2000)
    assert refused(embed, request, timeout=0.2).code == grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_call_that_takes_too_long_is_given_up_by_the_server_with_a_reason(wire: Any, embed: Any) -> None:
    """Asked for in the metadata alone, so that the caller itself has no deadline and hears what the server says."""
    request = wire.embedding.GenerateEmbeddingsRequest(texts=["word " * 200] * 2000)
    with pytest.raises(grpc.RpcError) as caught:
        embed(request, metadata=[TENANT, ("grpc-timeout", "200m")])
    refusal = Refusal(caught.value)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED")


@pytest.mark.requirement("isolation 4.2")
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"queries": []}, "queries"),
        ({"query": ""}, "queries[0].query"),
        ({"documents": []}, "queries[0].documents"),
        ({"text": ""}, "queries[0].documents[1].text"),
        ({"score": math.nan}, "queries[0].documents[1].first_stage_score"),
        ({"fused": True}, "queries[0].documents[1].first_stage_score"),
        ({"weight": -1.0, "fused": True, "score": 0.5}, "options.fusion_weight"),
    ],
)
def test_bad_rerank_requests_are_named(
    wire: Any, channel: grpc.Channel, refused: Any, change: dict[str, Any], field: str
) -> None:
    w = wire.reranking
    first = w.RerankDocument(text="one", first_stage_score=0.1)
    second = w.RerankDocument(text=change.get("text", "two"))
    if "score" in change:
        second.first_stage_score = change["score"]
    query = w.RerankQuery(query=change.get("query", "q"), documents=change.get("documents", [first, second]))
    options = w.RerankOptions(fusion=w.FUSION_STANDARDIZED_SUM if change.get("fused") else w.FUSION_NONE)
    if "weight" in change:
        options.fusion_weight = change["weight"]
    request = w.RerankBatchRequest(queries=change.get("queries", [query]), options=options)
    refusal = refused(w.RerankingServiceStub(channel).RerankBatch, request)
    assert (refusal.code, refusal.fields) == (INVALID, [field])


class TestVectors:
    @pytest.fixture(autouse=True)
    def _collection(self, wire: Any, vectors: Any) -> Iterator[None]:
        collection = wire.vector.Collection(name="bad-input", dimension=3, metric=wire.vector.METRIC_COSINE)
        vectors.CreateCollection(
            wire.vector.CreateCollectionRequest(collection=collection), metadata=[TENANT], timeout=60
        )
        request = wire.vector.UpsertVectorsRequest(
            collection="bad-input", ids=["kept"], vectors=tensor(wire, [[1, 0, 0]]), payloads=['{"year": 2020}']
        )
        vectors.UpsertVectors(request, metadata=[TENANT], timeout=60)
        before = self.state(wire, vectors)
        yield
        assert self.state(wire, vectors) == before, "state changed"
        vectors.DropCollection(wire.vector.DropCollectionRequest(collection="bad-input"), metadata=[TENANT], timeout=60)

    @pytest.mark.parametrize(
        ("ids", "rows", "payloads", "field"),
        [
            (["a"], [[1.0, 2.0]], [], "vectors.shape"),
            (["a", "b"], [[1.0, 0.0, 0.0], [math.nan, 0.0, 0.0]], [], "vectors[1]"),
            (["a", "b"], [[1.0, 0.0, 0.0], [math.inf, 0.0, 0.0]], [], "vectors[1]"),
            (["a"], [[0.0, 0.0, 0.0]], [], "vectors[0]"),
            (["a", "b", "a"], [[1.0, 0.0, 0.0]] * 3, [], "ids[2]"),
            (["a", ""], [[1.0, 0.0, 0.0]] * 2, [], "ids[1]"),
            (["a\0b"], [[1.0, 0.0, 0.0]], [], "ids[0]"),
            (["a"], [[1.0, 0.0, 0.0]] * 2, [], "vectors.shape"),
            (["a"], [[1.0, 0.0, 0.0]], ["[1, 2]"], "payloads[0]"),
            (["a"], [[1.0, 0.0, 0.0]], ['{"x": "' + "y" * 70_000 + '"}'], "payloads[0]"),
            (["a", "b"], [[1.0, 0.0, 0.0]] * 2, ["{}", '{"x": "' + "y" * 10_000_000 + '"}'], "payloads[1]"),
            ([], [[1.0, 0.0, 0.0]], [], "ids"),
            (["a", "b"], [[1.0, 0.0, 0.0], [-math.inf, 0.0, 0.0]], [], "vectors[1]"),
            (["a", "b"], [[1.0, 0.0, 0.0]] * 2, ["{}"], "payloads"),
        ],
    )
    def test_bad_points_are_named_and_nothing_is_written(
        self, wire: Any, vectors: Any, refused: Any, ids: list[str], rows: Any, payloads: list[str], field: str
    ) -> None:
        request = wire.vector.UpsertVectorsRequest(
            collection="bad-input", ids=ids, vectors=tensor(wire, rows), payloads=payloads
        )
        refusal = refused(vectors.UpsertVectors, request)
        assert (refusal.code, refusal.fields) == (INVALID, [field])

    def state(self, wire: Any, vectors: Any) -> tuple[object, ...]:
        """All that a call could have changed."""
        w = wire.vector

        def call(name: str, request: object) -> Any:
            return getattr(vectors, name)(request, metadata=[TENANT], timeout=60)

        listed = call("ListCollections", w.ListCollectionsRequest()).collections
        fetch = w.FetchVectorsRequest(
            collection="bad-input", ids=["kept", "a", "b"], with_vectors=True, with_payload=True
        )
        search = w.SearchVectorsRequest(collection="bad-input", queries=tensor(wire, [[1, 0, 0]]), k=10)
        statistics = call("GetCollectionStatistics", w.GetCollectionStatisticsRequest(collection="bad-input"))
        own = [collection.SerializeToString() for collection in listed if collection.name == "bad-input"]
        hits = call("SearchVectors", search).hits
        return own, call("FetchVectors", fetch).SerializeToString(), str(hits), statistics.points

    @pytest.mark.parametrize(
        ("k", "rows", "field"),
        [
            (0, [[1.0, 0, 0]], "k"),
            (10_001, [[1.0, 0, 0]], "k"),
            (1, [[1.0, 0]], "queries.shape"),
            (1, [[1.0, 0, 0], [0, 0, 0]], "queries[1]"),
            (1, [[1.0, 0, 0], [math.nan, 0, 0]], "queries[1]"),
        ],
    )
    def test_bad_searches_are_named(self, wire: Any, vectors: Any, refused: Any, k: int, rows: Any, field: str) -> None:
        request = wire.vector.SearchVectorsRequest(collection="bad-input", queries=tensor(wire, rows), k=k)
        assert refused(vectors.SearchVectors, request).fields == [field]

    @pytest.mark.parametrize("field", [[], ["yaer"], ["year"] * 9, ["year", "month"]])
    def test_bad_filter_fields_are_named(self, wire: Any, vectors: Any, refused: Any, field: list[str]) -> None:
        value = wire.vector.FilterValue(integer=2020)
        equals = wire.vector.Filter(equals=wire.vector.FilterEquals(field=field, value=value))
        search = wire.vector.SearchVectorsRequest(
            collection="bad-input", queries=tensor(wire, [[1.0, 0, 0]]), k=1, filter=equals
        )
        count = wire.vector.CountVectorsRequest(collection="bad-input", filter=equals)
        for method, request in ((vectors.SearchVectors, search), (vectors.CountVectors, count)):
            refusal = refused(method, request)
            assert (refusal.code, refusal.fields) == (INVALID, ["filter.equals.field"])

    @pytest.mark.parametrize("method", ["DeleteVectors", "FetchVectors"])
    def test_a_call_for_no_ids_is_refused(self, wire: Any, vectors: Any, refused: Any, method: str) -> None:
        request = getattr(wire.vector, f"{method}Request")(collection="bad-input")
        assert refused(getattr(vectors, method), request).fields == ["ids"]

    def test_an_unknown_collection_is_not_found(self, wire: Any, vectors: Any, refused: Any) -> None:
        request = wire.vector.SearchVectorsRequest(collection="nowhere", queries=tensor(wire, [[1.0, 0, 0]]), k=1)
        refusal = refused(vectors.SearchVectors, request)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "COLLECTION_NOT_FOUND")

    def test_another_tenants_collection_does_not_exist(self, wire: Any, vectors: Any, refused: Any) -> None:
        request = wire.vector.DropCollectionRequest(collection="bad-input")
        refusal = refused(vectors.DropCollection, request, metadata=[("x-tenant-id", "other")])
        assert refusal.reason == "COLLECTION_NOT_FOUND"

    @pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b", "x" * 128, "a\0b"])
    def test_a_bad_name_makes_no_file(self, wire: Any, vectors: Any, refused: Any, name: str) -> None:
        collection = wire.vector.Collection(name=name, dimension=3)
        refusal = refused(vectors.CreateCollection, wire.vector.CreateCollectionRequest(collection=collection))
        assert (refusal.code, refusal.fields) == (INVALID, ["collection.name"])

    def test_a_taken_name_is_told_with_what_is_there(self, wire: Any, vectors: Any, refused: Any) -> None:
        collection = wire.vector.Collection(name="bad-input", dimension=5)
        request = wire.vector.CreateCollectionRequest(collection=collection, exist_ok=True)
        refusal = refused(vectors.CreateCollection, request)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "COLLECTION_EXISTS")
        assert "dimension 3" in refusal.message


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [({"memory_bytes": 0}, "memory_bytes"), ({"memory_bytes": 1, "owner": "o" * 129}, "owner")],
)
def test_bad_allocations_are_named(
    wire: Any, channel: grpc.Channel, refused: Any, request_fields: dict[str, Any], field: str
) -> None:
    stub = wire.gpu.GpuServiceStub(channel)
    assert refused(stub.AllocateGPU, wire.gpu.AllocateGPURequest(**request_fields)).fields == [field]


def test_a_port_in_use_is_told_before_models_are_loaded(server: LocalServer, gpu_server_binary: Path) -> None:
    address = server.address.removeprefix("http://")
    command = [gpu_server_binary, "--services", "gpu", "--device", "cpu", "--listen", address]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert outcome.returncode == 69
    assert address in outcome.stderr
    assert "choose another --listen" in outcome.stderr


def test_a_wrong_configuration_exits_64_and_lists_every_problem(gpu_server_binary: Path) -> None:
    outcome = subprocess.run([gpu_server_binary], capture_output=True, text=True, timeout=60, check=False, env={})
    assert outcome.returncode == 64
    assert outcome.stderr.count("gpu-server: --") == 3


@pytest.mark.parametrize("damage", ["missing", "truncated", "no-config", "wrong-shape", "pickle", "bad-tokenizer"])
def test_a_model_that_cannot_be_loaded_refuses_by_name(
    wire: Any,
    start_server: Callable[..., LocalServer],
    open_channel: Any,
    refused: Any,
    minilm_dir: Path,
    tmp_path: Path,
    damage: str,
) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(minilm_dir, broken)
    weights = broken / "model.safetensors"
    match damage:
        case "missing":
            weights.unlink()
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:1_000_000])
        case "no-config":
            (broken / "config.json").unlink()
        case "wrong-shape":
            config = broken / "config.json"
            config.write_text(config.read_text().replace('"intermediate_size": 1536', '"intermediate_size": 1024'))
        case "pickle":
            weights.rename(broken / "pytorch_model.bin")
        case "bad-tokenizer":
            (broken / "tokenizer.json").write_text("{}")
    named = {"no-config": "config.json", "pickle": "pytorch_model.bin", "bad-tokenizer": "tokenizer.json"}
    server = start_server(
        services=("gpu", "embedding"), embedding_models={"good": minilm_dir, "broken": broken}, reranking_models={}
    )
    channel = open_channel(server)
    embed = wire.embedding.EmbeddingServiceStub(channel).GenerateEmbeddings
    refusal = refused(embed, wire.embedding.GenerateEmbeddingsRequest(model="broken", texts=["x"]))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_LOAD_FAILED")
    assert named.get(damage, "model.safetensors") in refusal.message
    good = embed(wire.embedding.GenerateEmbeddingsRequest(model="good", texts=["x"]), metadata=[TENANT], timeout=60)
    assert list(good.embeddings.shape) == [1, 384]
    server.stop()
