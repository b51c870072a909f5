"""What tests of models share: a server with an admin address, and calls to it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

from .conftest import TENANT, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from medkg.local import LocalServer

TEXT = "Metformin lowers hepatic glucose production."
BOTH = ("embedding", "reranking")


def eventually(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


class Operated:
    """A server, seen by its callers and by its operators."""

    def __init__(self, wire: Any, server: LocalServer, channel: grpc.Channel, admin: grpc.Channel) -> None:
        self.wire, self.server, self.channel, self.admin_channel = wire, server, channel, admin
        self.embedding = wire.embedding.EmbeddingServiceStub(channel)
        self.reranking = wire.reranking.RerankingServiceStub(channel)
        self.models = wire.model.ModelServiceStub(admin)

    def role(self, name: str) -> int:
        return int(self.wire.model.ModelRole.Value(f"MODEL_ROLE_{name.upper()}"))

    def load(self, name: str, directory: str = "", role: str = "embedding", **fields: str) -> Any:
        request = self.wire.model.LoadModelRequest(role=self.role(role), name=name, directory=directory, **fields)
        return self.models.LoadModel(request, metadata=[TENANT], timeout=60).model

    def unload(self, name: str, role: str = "embedding") -> Any:
        request = self.wire.model.UnloadModelRequest(role=self.role(role), name=name)
        return self.models.UnloadModel(request, metadata=[TENANT], timeout=60).model

    def refused(self, call: Callable[[], Any]) -> Refusal:
        try:
            call()
        except grpc.RpcError as error:
            return Refusal(error)
        raise AssertionError("it was not refused")

    def embed(self, model: str = "", texts: tuple[str, ...] = (TEXT,)) -> Any:
        request = self.wire.embedding.GenerateEmbeddingsRequest(model=model, texts=texts)
        return self.embedding.GenerateEmbeddings(request, metadata=[TENANT], timeout=60)

    def vectors(self, model: str = "", texts: tuple[str, ...] = (TEXT,)) -> tuple[str, np.ndarray]:
        """The digest that answered, and f32 [texts, dimension]."""
        answer = self.embed(model, texts)
        rows = np.frombuffer(answer.embeddings.data, dtype="<f4").reshape(tuple(answer.embeddings.shape))
        return answer.model_digest, rows

    def score(self, query: str, document: str, model: str = "") -> float:
        r = self.wire.reranking
        asked = r.RerankQuery(query=query, documents=[r.RerankDocument(text=document)])
        request = r.RerankBatchRequest(model=model, queries=[asked])
        answer = self.reranking.RerankBatch(request, metadata=[TENANT], timeout=60)
        return float(answer.rankings[0].documents[0].relevance)

    def told(self, name: str, role: str = "embedding") -> Any:
        """The model as the admin address tells it."""
        request = self.wire.model.ModelServiceListModelsRequest()
        listed = self.models.ListModels(request, metadata=[TENANT], timeout=60).models
        return next((m.model for m in listed if m.model.name == name and m.role == self.role(role)), None)

    def state(self, name: str, role: str = "embedding") -> str:
        told = self.told(name, role)
        prefix = "MODEL_STATE_"
        return "" if told is None else self.wire.types.ModelState.Name(told.state).removeprefix(prefix).lower()

    def lines(self, message: str) -> list[dict[str, object]]:
        return [line for line in self.server.events() if line.get("message") == message]
