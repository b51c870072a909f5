"""Requests and results: what they refuse, that nothing in them changes, and that vectors are not copied."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import medkg
from medkg.contracts import (
    EmbeddingOptions,
    EmbeddingRequest,
    EmbeddingResult,
    EmbeddingStage,
    FeatureFlags,
    MissingResultError,
    PipelineContext,
)

PATIENT = "Mrs Harbour, 82, creatinine 4.1"


def result(**changes: Any) -> EmbeddingResult:
    fields: dict[str, Any] = {
        "vectors": np.ones((2, 3), np.float32),
        "dimension": 3,
        "model": "m",
        "correlation_id": "c",
        "seconds": 0.5,
    }
    return EmbeddingResult(**{**fields, **changes})


@pytest.mark.requirement("observability 2.1")
@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"texts": []}, "texts"),
        ({"texts": ["a", ""]}, "texts[1]"),
        ({"texts": ["a", 7]}, "texts[1]"),
        ({"texts": "a lone string"}, "texts"),
        ({"texts": ["a"], "ids": ["x", "y"]}, ""),
        ({"texts": ["a", "b"], "ids": ["x", "x"]}, ""),
        ({"texts": ["a"], "correlation_id": "two words"}, "correlation_id"),
        ({"texts": ["a"], "tenant": ""}, "tenant"),
        ({"texts": ["a"], "unknown": 1}, "unknown"),
        ({"texts": ["a"], "options": {"dimensions": 0}}, "options.dimensions"),
    ],
)
def test_a_wrong_request_is_refused_by_place(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(medkg.EmbeddingValidationError) as refused:
        EmbeddingRequest(**fields)
    assert where in [place for place, _ in refused.value.field_violations]
    assert isinstance(refused.value, medkg.EmbeddingError)
    assert not refused.value.retryable


@pytest.mark.parametrize(
    "fields",
    [
        {"dimensions": 0},
        {"dimensions": "3"},
        {"dtype": "float64"},
        {"timeout": 0.0},
        {"timeout": float("inf")},
        {"prompt_name": "query", "instruction": "find"},
    ],
)
def test_wrong_options_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(medkg.EmbeddingValidationError):
        EmbeddingOptions(**fields)


def test_json_and_dicts_are_refused_by_place_too() -> None:
    request = EmbeddingRequest(texts=["a"], ids=["1"], tenant="demo", options=EmbeddingOptions(dimensions=128))
    assert EmbeddingRequest.model_validate_json(request.model_dump_json()) == request
    with pytest.raises(medkg.EmbeddingValidationError) as refused:
        EmbeddingRequest.model_validate_json('{"texts": ["a", ""], "options": {"dimensions": 0}}')
    assert [place for place, _ in refused.value.field_violations] == ["texts[1]", "options.dimensions"]
    with pytest.raises(medkg.EmbeddingValidationError, match=r"texts\[0\]"):
        EmbeddingRequest.model_validate({"texts": [""]})


def test_what_is_refused_does_not_show_the_text() -> None:
    with pytest.raises(medkg.EmbeddingValidationError) as refused:
        EmbeddingRequest(texts=[PATIENT], ids=[PATIENT, PATIENT])
    seen: BaseException | None = refused.value
    while seen is not None:
        assert "Harbour" not in repr(seen)
        seen = seen.__cause__ or seen.__context__


def test_nothing_in_a_contract_can_be_changed() -> None:
    request = EmbeddingRequest(texts=["a"])
    for contract, name in ((request, "texts"), (request.options, "model"), (result(), "model")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(contract, name, "b")
    with pytest.raises(ValueError, match="read-only"):
        result().vectors[0, 0] = 2


@pytest.mark.requirement("observability 2.1")
def test_vectors_are_taken_over_without_a_copy_and_checked_as_a_whole() -> None:
    vectors = np.ones((2, 3), np.float32)
    assert np.shares_memory(result(vectors=vectors).vectors, vectors)
    assert vectors.flags.writeable, "the caller's own array stays as it was"
    for changes, what in (
        ({"vectors": np.ones((2, 3))}, "float64"),
        ({"vectors": [[1.0]]}, "ndarray"),
        ({"dimension": 4}, "columns"),
        ({"ids": ("one",)}, "ids"),
        ({"dtype": "int8", "vectors": np.ones((2, 3), np.int8)}, "scales"),
    ):
        with pytest.raises(medkg.EmbeddingValidationError, match=what):
            result(**changes)


def test_contracts_travel_between_processes() -> None:
    request = EmbeddingRequest(texts=["a", "b"], options=EmbeddingOptions(dimensions=3))
    assert pickle.loads(pickle.dumps(request)) == request  # noqa: S301 - our own bytes
    before = result(ids=("x", "y"))
    after = pickle.loads(pickle.dumps(before))  # noqa: S301 - as above
    np.testing.assert_array_equal(after.vectors, before.vectors)
    assert after.ids == before.ids
    assert not after.vectors.flags.writeable


@pytest.mark.requirement("observability 2.3")
def test_a_context_gives_results_by_type_and_says_what_is_missing() -> None:
    empty = PipelineContext(tenant="clinic", correlation_id="run-1")
    context = empty.with_result("embedding", result())
    assert dict(empty.results) == {}
    assert context.result("embedding", EmbeddingResult).model == "m"
    with pytest.raises(MissingResultError, match=r"'chunking' has no result.*'embedding'.*run it before"):
        context.result("chunking", list)
    with pytest.raises(MissingResultError, match="gave EmbeddingResult, and dict is asked for"):
        context.result("embedding", dict)
    with pytest.raises(ValueError, match="has a result already"):
        context.with_result("embedding", result())
    with pytest.raises(TypeError):
        context.results["embedding"] = None


@pytest.mark.requirement("observability 2.3")
def test_flags_come_from_the_environment_and_a_slip_is_told() -> None:
    assert FeatureFlags.from_environment({}) == FeatureFlags(use_gpu_services=True, typed_stage=False)
    read = FeatureFlags.from_environment({"MEDKG_USE_GPU_SERVICES": "Off", "MEDKG_TYPED_STAGE": "1"})
    assert read == FeatureFlags(use_gpu_services=False, typed_stage=True)
    with pytest.raises(medkg.ConfigError, match="MEDKG_TYPED_STAGE is neither yes nor no"):
        FeatureFlags.from_environment({"MEDKG_TYPED_STAGE": "perhaps"})


def test_every_error_has_a_class_for_machines_and_importing_medkg_brings_no_pydantic() -> None:
    assert medkg.GpuLostError("x").failure_class == "GPU"
    assert medkg.CircuitOpenError("x").failure_class == "NETWORK"
    assert medkg.EmbeddingValidationError("x").failure_class == "INPUT"
    check = "import sys, medkg; medkg.EmbeddingError; assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_a_failure_is_logged_with_its_parts_and_without_a_text(caplog: pytest.LogCaptureFixture) -> None:
    error = medkg.ServiceUnavailableError("down", request_id="r", retry_after=2.5, breaker_state="open", retryable=True)

    def embed(*_: Any, **__: Any) -> None:
        raise error

    stage = EmbeddingStage(SimpleNamespace(embed=embed))
    request = EmbeddingRequest(texts=[PATIENT], correlation_id="r")
    with caplog.at_level(logging.DEBUG, "medkg.contracts"), pytest.raises(medkg.EmbeddingProcessingError) as failed:
        stage.run(request)
    (record,) = caplog.records
    assert (record.levelname, record.__dict__["failure_class"], record.__dict__["retry_after"]) == (
        "WARNING",
        "NETWORK",
        2.5,
    )
    assert "Harbour" not in str(record.__dict__)
    told = failed.value
    assert (told.error_class, told.failure_class, told.breaker_state) == ("ServiceUnavailableError", "NETWORK", "open")
    assert (told.retry_after, told.correlation_id, told.retryable) == (2.5, "r", True)
