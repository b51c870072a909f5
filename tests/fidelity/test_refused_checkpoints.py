"""A checkpoint that would be computed wrong is refused, naming the file and the field, tensor or module."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from medkg.local import LocalServer

TENANT = ("x-tenant-id", "fidelity")
HIDDEN, WIDE = 8, 16
CONFIG = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": HIDDEN,
    "intermediate_size": WIDE,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "vocab_size": 30522,
    "hidden_act": "gelu",
}
WORDS = "embeddings.word_embeddings.weight"
DENSE = "encoder.layer.0.intermediate.dense.weight"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def tensors() -> dict[str, np.ndarray]:
    """One layer of BERT."""
    linear = {
        "attention.self.query": (HIDDEN, HIDDEN),
        "attention.self.key": (HIDDEN, HIDDEN),
        "attention.self.value": (HIDDEN, HIDDEN),
        "attention.output.dense": (HIDDEN, HIDDEN),
        "intermediate.dense": (WIDE, HIDDEN),
        "output.dense": (HIDDEN, WIDE),
    }
    shapes: dict[str, tuple[int, ...]] = {
        WORDS: (CONFIG["vocab_size"], HIDDEN),
        "embeddings.position_embeddings.weight": (CONFIG["max_position_embeddings"], HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
    }
    for name, shape in linear.items():
        shapes[f"encoder.layer.0.{name}.weight"] = shape
        shapes[f"encoder.layer.0.{name}.bias"] = shape[:1]
    for norm in ("embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output"):
        shapes[f"{norm}.LayerNorm.weight"] = shapes[f"{norm}.LayerNorm.bias"] = (HIDDEN,)
    made = np.random.default_rng(1)
    return {name: made.normal(size=shape).astype("<f4") for name, shape in shapes.items()}


def safetensors(arrays: dict[str, np.ndarray]) -> bytes:
    """The file format: the header's length, the header, the data."""
    header, data = {}, b""
    for name, array in arrays.items():
        raw = array.tobytes()
        kind = {"<f4": "F32", "<i8": "I64"}[array.dtype.str]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


class Checkpoint:
    """A folder that loads, until a test changes it."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.folder = folder
        folder.mkdir()
        shutil.copy(tokenizer, folder / "tokenizer.json")
        self.config()
        self.tensors = tensors()
        self.save()

    def config(self, **changes: Any) -> None:
        self.write("config.json", {**CONFIG, **changes})

    def write(self, file: str, content: Any) -> None:
        path = self.folder / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))

    def save(self, file: str = "model.safetensors", names: set[str] | None = None) -> None:
        chosen = {name: array for name, array in self.tensors.items() if names is None or name in names}
        (self.folder / file).write_bytes(safetensors(chosen))

    def shard(self, places: dict[str, str]) -> None:
        (self.folder / "model.safetensors").unlink()
        self.write("model.safetensors.index.json", {"weight_map": places})

    def halves(self) -> dict[str, str]:
        """Writes two shards; gives the index."""
        names = sorted(self.tensors)
        places = {name: SHARDS[at * 2 // len(names)] for at, name in enumerate(names)}
        for shard in SHARDS:
            self.save(shard, {name for name, place in places.items() if place == shard})
        return places

    def modules(self, *classes: str, first: str = "") -> None:
        listed = [{"path": first, "type": "sentence_transformers.models.Transformer"}]
        listed += [
            {"path": f"{at}_{name}", "type": f"sentence_transformers.models.{name}"}
            for at, name in enumerate(classes, start=1)
        ]
        self.write("modules.json", listed)

    def qwen3(self, **changes: Any) -> None:
        self.config(model_type="qwen3", num_key_value_heads=1, head_dim=4, hidden_act="silu", **changes)

    def modernbert(self, **changes: Any) -> None:
        self.config(model_type="modernbert", hidden_activation="gelu", **changes)


def without(name: str) -> Callable[[Checkpoint], None]:
    def change(it: Checkpoint) -> None:
        del it.tensors[name]
        it.save()

    return change


def with_tensor(name: str, array: np.ndarray) -> Callable[[Checkpoint], None]:
    def change(it: Checkpoint) -> None:
        it.tensors[name] = array
        it.save()

    return change


def cut(size: int) -> Callable[[Checkpoint], None]:
    def change(it: Checkpoint) -> None:
        file = it.folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size])

    return change


def lost_shard(it: Checkpoint) -> None:
    it.shard(it.halves())
    (it.folder / SHARDS[1]).unlink()


def lying_index(it: Checkpoint) -> None:
    places = it.halves()
    it.shard({**places, WORDS: next(shard for shard in SHARDS if shard != places[WORDS])})


def outside(it: Checkpoint) -> None:
    it.shard({**it.halves(), WORDS: "../model.safetensors"})


def third_segment(it: Checkpoint) -> None:
    file = it.folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    for piece in tokenizer["post_processor"]["pair"]:
        for part in piece.values():
            part["type_id"] *= 2
    file.write_text(json.dumps(tokenizer))


def dense(it: Checkpoint) -> None:
    it.modules("Pooling", "Dense")
    it.write("1_Pooling/config.json", {"pooling_mode": "mean"})
    it.write("2_Dense/config.json", {"in_features": HIDDEN + 1, "out_features": 4})


def pooling(**config: Any) -> Callable[[Checkpoint], None]:
    def change(it: Checkpoint) -> None:
        it.modules("Pooling")
        it.write("1_Pooling/config.json", config)

    return change


# Name: what is done to a good checkpoint, and what the refusal has to name.
REFUSED: dict[str, tuple[Callable[[Checkpoint], object], tuple[str, ...]]] = {
    "no-tensor": (without(DENSE), ("model.safetensors", DENSE, "missing")),
    "wrong-shape": (with_tensor(DENSE, np.zeros((WIDE, HIDDEN + 1), "<f4")), (DENSE, "[16, 9]", "[16, 8]")),
    "integers": (with_tensor(DENSE, np.zeros((WIDE, HIDDEN), "<i8")), (DENSE, "I64")),
    "no-data": (cut(2000), ("model.safetensors", "not whole")),
    "no-header": (cut(5), ("model.safetensors", "not whole")),
    "half-data": (cut(500_000), ("model.safetensors", "not whole")),
    "foreign-file": (
        lambda it: (it.folder / "model.safetensors").write_bytes(b"\x80\x02}q\x00." * 100),
        ("model.safetensors", "not a"),
    ),
    "pickle": (
        lambda it: (it.folder / "model.safetensors").rename(it.folder / "pytorch_model.bin"),
        ("pytorch_model.bin", "save_pretrained(safe_serialization=True)"),
    ),
    "no-weights": (lambda it: (it.folder / "model.safetensors").unlink(), ("model.safetensors", "is not there")),
    "lost-shard": (lost_shard, (SHARDS[1],)),
    "lying-index": (lying_index, ("model.safetensors.index.json", WORDS)),
    "shard-outside": (outside, ("model.safetensors.index.json", "../model.safetensors")),
    "family": (lambda it: it.config(model_type="t5"), ("config.json", "model_type", "t5", "modernbert")),
    "activation": (lambda it: it.config(hidden_act="mish"), ("config.json", "hidden_act", "mish")),
    "positions": (
        lambda it: it.config(position_embedding_type="relative_key"),
        ("config.json", "position_embedding_type", "relative_key"),
    ),
    "decoder": (lambda it: it.config(is_decoder=True), ("config.json", "is_decoder")),
    "heads": (lambda it: it.config(num_attention_heads=3), ("config.json", "num_attention_heads")),
    "segments": (third_segment, ("tokenizer.json", "type_vocab_size")),
    "words": (lambda it: it.config(vocab_size=100), ("tokenizer.json", "vocab_size")),
    "no-size": (
        lambda it: it.write("config.json", {key: CONFIG[key] for key in CONFIG if key != "hidden_size"}),
        ("config.json", "hidden_size"),
    ),
    "scaled-rope": (
        lambda it: it.modernbert(rope_parameters={"full_attention": {"rope_type": "yarn", "factor": 4.0}}),
        ("config.json", "rope_parameters"),
    ),
    "layer-types": (lambda it: it.modernbert(layer_types=["chunked_attention"]), ("config.json", "layer_types")),
    "old-scaled-rope": (lambda it: it.qwen3(rope_scaling={"type": "linear", "factor": 2.0}), ("rope_scaling",)),
    "window": (lambda it: it.qwen3(use_sliding_window=True), ("config.json", "use_sliding_window")),
    "module": (lambda it: it.modules("WordWeights"), ("modules.json", "WordWeights")),
    "module-outside": (lambda it: it.modules("Pooling/../../Pooling"), ("modules.json", "Pooling/..")),
    "old-layout": (lambda it: it.modules("Pooling", first="0_Transformer"), ("modules.json", "0_Transformer")),
    "no-pooling": (lambda it: it.modules("Normalize"), ("modules.json", "Normalize")),
    "pooling-mode": (pooling(pooling_mode="attention"), ("1_Pooling/config.json", "attention")),
    "pooling-flag": (pooling(pooling_mode_attention=True), ("1_Pooling/config.json", "pooling_mode_attention")),
    "dense-size": (dense, ("2_Dense/config.json", "in_features")),
    "prompt": (
        lambda it: it.write("config_sentence_transformers.json", {"prompts": {"a": "b"}, "default_prompt_name": "c"}),
        ("config_sentence_transformers.json", "default_prompt_name"),
    ),
}
REFUSED_RERANKERS: dict[str, tuple[Callable[[Checkpoint], object], tuple[str, ...]]] = {
    "rerank-encoder": (lambda it: it.config(), ("config.json", "architectures", "ForSequenceClassification")),
    "rerank-labels": (
        lambda it: it.config(architectures=["BertForSequenceClassification"], id2label={"0": "a", "1": "b"}),
        ("config.json", "id2label", "2"),
    ),
    "rerank-no-head": (
        lambda it: it.config(architectures=["BertForSequenceClassification"], id2label={"0": "a"}),
        ("model.safetensors", "pooler.dense.weight"),
    ),
    "rerank-embedder": (pooling(pooling_mode="mean"), ("modules.json", "embedding model")),
}


@pytest.fixture(scope="module")
def stubs(
    start_server: Callable[..., LocalServer], minilm_dir: Path, wire: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, Any]]:
    folder = tmp_path_factory.mktemp("refused")
    models: dict[str, dict[str, Path]] = {"embedding": {}, "reranking": {}}
    for role, changes in (("embedding", REFUSED), ("reranking", REFUSED_RERANKERS)):
        for name, (change, _) in changes.items():
            change(Checkpoint(folder / name, minilm_dir / "tokenizer.json"))
            models[role][name] = folder / name
    for name in ("fine", "fine-in-shards"):
        fine = Checkpoint(folder / name, minilm_dir / "tokenizer.json")
        models["embedding"][name] = folder / name
    fine.shard(fine.halves())
    server = start_server(
        services=("embedding", "reranking"),
        embedding_models=models["embedding"],
        reranking_models=models["reranking"],
    )
    with grpc.insecure_channel(server.address.removeprefix("http://")) as channel:
        yield wire.embedding.EmbeddingServiceStub(channel), wire.reranking.RerankingServiceStub(channel)


def refusal(method: Any, request: Any) -> str:
    with pytest.raises(grpc.RpcError) as raised:
        method(request, metadata=[TENANT], timeout=60)
    assert raised.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    return str(raised.value.details())


def test_the_unchanged_checkpoint_is_served(stubs: tuple[Any, Any], wire: Any) -> None:
    """Without this, the others could be refused for anything."""
    answers = []
    for name in ("fine", "fine-in-shards"):
        request = wire.embedding.GenerateEmbeddingsRequest(model=name, texts=["heart failure"])
        answers.append(stubs[0].GenerateEmbeddings(request, metadata=[TENANT], timeout=60).embeddings)
    assert list(answers[0].shape) == [1, HIDDEN]
    assert answers[0].data == answers[1].data


@pytest.mark.parametrize("name", REFUSED)
def test_an_embedding_model_is_refused_by_name(stubs: tuple[Any, Any], wire: Any, name: str) -> None:
    request = wire.embedding.GenerateEmbeddingsRequest(model=name, texts=["x"])
    message = refusal(stubs[0].GenerateEmbeddings, request)
    for fragment in (name, *REFUSED[name][1]):
        assert fragment in message


@pytest.mark.parametrize("name", REFUSED_RERANKERS)
def test_a_reranking_model_is_refused_by_name(stubs: tuple[Any, Any], wire: Any, name: str) -> None:
    document = wire.reranking.RerankDocument(text="x")
    query = wire.reranking.RerankQuery(query="x", documents=[document])
    message = refusal(stubs[1].RerankBatch, wire.reranking.RerankBatchRequest(model=name, queries=[query]))
    for fragment in (name, *REFUSED_RERANKERS[name][1]):
        assert fragment in message
