"""infinity-emb's AsyncEmbeddingEngine, fp32: its batching engine without the web server, which is its best case."""
# ruff: noqa: TID251

from __future__ import annotations

import asyncio
import time
from typing import Any

import torch
from answering import serve, versions
from infinity_emb import AsyncEmbeddingEngine, EngineArgs


class Engine:
    """One engine at a time: another batch size needs another engine."""

    def __init__(self, model: str, threads: int) -> None:
        """Starts none yet."""
        torch.set_num_threads(threads)
        self.model = model
        self.batch = 0
        self.engine: Any = None
        self.loop = asyncio.new_event_loop()

    async def started(self, batch: int) -> Any:
        """The engine with that batch size."""
        if self.batch != batch:
            if self.engine is not None:
                await self.engine.astop()
            # BetterTransformer needs an old transformers; sdpa is what the model uses without it.
            self.engine = AsyncEmbeddingEngine.from_args(
                EngineArgs(
                    model_name_or_path=self.model,
                    engine="torch",
                    device="cpu",
                    dtype="float32",
                    batch_size=batch,
                    bettertransformer=False,
                    model_warmup=False,
                    lengths_via_tokenize=False,
                )
            )
            await self.engine.astart()
            self.batch = batch
        return self.engine

    async def timed(self, texts: list[str], batch: int, callers: int) -> float:
        """Seconds until every caller has its share of the texts."""
        engine = await self.started(batch)
        started = time.perf_counter()
        await asyncio.gather(*(engine.embed(texts[caller::callers]) for caller in range(min(callers, len(texts)))))
        return time.perf_counter() - started

    async def computed(self, texts: list[str]) -> list[list[float]]:
        """The vectors."""
        engine = await self.started(8)
        vectors, _ = await engine.embed(texts)
        return [vector.tolist() for vector in vectors]


def load(model: str, threads: int) -> tuple[dict[str, str], dict[str, Any]]:
    """Makes the engine and says what it can do."""
    engine = Engine(model, threads)
    run = engine.loop.run_until_complete
    actions = {
        "vectors": lambda texts: run(engine.computed(texts)),
        "embed": lambda texts, batch, callers: run(engine.timed(texts, batch, callers)),
    }
    return versions("infinity-emb", "sentence-transformers", "transformers", "torch"), actions


serve(load)
