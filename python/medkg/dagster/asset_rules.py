"""Rules that the pipeline's assets keep: whose input they take, what becomes of failed documents, what they log."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from medkg.dagster import metadata
from medkg.dagster.failures import FAILURE_CLASS_KEY
from medkg.dagster.outputs import ChunkSet, EmbeddingSet, IndexSummary, SetAside
from medkg.dagster.step import StepContext
from medkg.failure_class import FailureClass

if TYPE_CHECKING:
    from medkg import ModelInfo

_LOG_EVERY: Final = 2.0


def refusal(reason: str, more: Mapping[str, dg.MetadataValue] | None = None) -> dg.Failure:
    """The failure of a step whose input cannot be worked on; it is not retried."""
    found = {FAILURE_CLASS_KEY: dg.MetadataValue.text(FailureClass.INPUT.value), **(more or {})}
    return dg.Failure(reason, metadata=found, allow_retries=False)


def require_tenant(tenant: str, owner: str, upstream: str) -> None:
    """Refuses what an upstream asset stored for somebody else.

    Raises:
        dg.Failure: `owner` is not `tenant`.
    """
    if tenant != owner:
        msg = (
            f"this run is for tenant {tenant!r}, but the stored {upstream} are of tenant {owner!r};"
            f" materialize {upstream} in this run too"
        )
        raise refusal(msg)


def require_same_chunks(chunks: ChunkSet, embeddings: EmbeddingSet) -> None:
    """Refuses embeddings of other chunks than the stored ones: what is new would be left out without a word.

    Raises:
        dg.Failure: The embeddings were made from another set of chunks.
    """
    if embeddings.chunks_digest != chunks.digest:
        msg = (
            "the stored embeddings were made from other chunks than the stored ones;"
            " materialize embeddings and then vector_index, or the whole chain in one run"
        )
        raise refusal(msg)


def current_index(stored: Any, tenant: str) -> IndexSummary:
    """What is told of the tenant's collection: by one `vector_index`, or by all of its batches.

    Args:
        stored: An `IndexSummary`, or one for each partition that is there.
        tenant: Whose.

    Raises:
        dg.Failure: There is none of this tenant's, or batches were indexed with different weights.
    """
    summaries: list[IndexSummary] = list(stored.values()) if isinstance(stored, Mapping) else [stored]
    own = [summary for summary in summaries if summary.tenant == tenant]
    if not own:
        for summary in summaries:
            require_tenant(tenant, summary.tenant, "vector_index")
        msg = f"nothing is indexed for tenant {tenant!r}; materialize vector_index first"
        raise refusal(msg)
    if len({summary.model_digest for summary in own}) > 1:
        msg = "the batches of vector_index were made with different weights; launch a backfill from embeddings on"
        raise refusal(msg)
    return replace(own[-1], stale=max(summary.stale for summary in own))


def find_model(models: "Sequence[ModelInfo]", name: str) -> "ModelInfo":
    """The model of that name.

    Raises:
        dg.Failure: The server does not have it, or it does not answer.
    """
    for model in models:
        if model.name == name and model.state in {"ready", "unknown"}:
            return model
    known = ", ".join(f"{model.name} ({model.state})" for model in models) or "none"
    msg = f"the server does not have the embedding model {name!r} ready; it has: {known}"
    raise refusal(msg)


def report_set_aside(
    context: StepContext, failed: Sequence[SetAside], *, left: int, what: str, may_be_empty: bool = False
) -> None:
    """Names each document that failed in the log.

    Args:
        context: The step's context.
        failed: The documents.
        left: How much there is to go on with.
        what: What that is.
        may_be_empty: Whether there may be nothing to work on: a batch can be without a document.

    Raises:
        dg.Failure: Nothing is left.
    """
    for one in failed:
        context.log.warning("set aside %s: %s", one.document, one.reason)
    if left or (may_be_empty and not failed):
        return
    found = "; ".join(f"{one.document}: {one.reason}" for one in failed) or "there was nothing to work on"
    msg = f"not one {what}: {found}"
    raise refusal(msg, metadata.set_aside(failed))


def log_progress(context: StepContext, what: str) -> Callable[[int, int], None]:
    """A function that logs how far a stage is: at its end, and at most every two seconds before."""
    last = time.monotonic()
    told: int | None = None

    def report(done: int, total: int) -> None:
        nonlocal last, told
        now = time.monotonic()
        if done == told or (done < total and now - last < _LOG_EVERY):
            return
        last, told = now, done
        context.log.info("%s of %s %s", done, total, what)

    return report


def seconds_since(started: float) -> float:
    """Seconds since a reading of `time.perf_counter`, to a tenth of a millisecond."""
    return round(time.perf_counter() - started, 4)
