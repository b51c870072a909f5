"""What a person sees of medkg in Dagster's pages, and the pictures of it that docs show.

A whole deployment and a real gpu-server, whose GPU is played so that it can be lost; a headless Chromium opens the
pages. Each test says what has to be there to be read, and keeps a picture in `build/screens`. With `MEDKG_SCREENS`
(`make screens`) it is kept there instead: in docs/images.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from bench.literature import write_notes
from medkg.local import LocalServer
from tests.browser import Browser, browsing
from tests.server.played import PlayedGpu

from .conftest import HERE, SAMPLES
from .deployment import Deployment, deployed, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = HERE.parents[1]
PRIVATE = ("Stack Trace", str(ROOT), str(Path.home()), tempfile.gettempdir())
"""What is of the machine that takes the pictures."""
ASSETS = ("documents", "chunks", "embeddings", "vector_index", "reranked_answers", "retrieval_evaluation", "terms")
JUDGED = {
    "How soon must antibiotics be given in septic shock?": "sepsis-first-hours",
    "Which drugs lower the risk of dying in heart failure?": "heart-failure-four-drugs",
    "Which blood tests does a patient on methotrexate need?": "methotrexate-monitoring",
    "What prevents attacks of migraine?": "migraine-prophylaxis",
    "Who with atrial fibrillation needs an anticoagulant?": "atrial-fibrillation-anticoagulation",
}


@dataclass(frozen=True)
class Hospital:
    """A deployment of literature_project.py, its gpu-server, and the run that has made every asset."""

    deployment: Deployment
    played: PlayedGpu
    server: LocalServer

    def page(self, path: str) -> str:
        return f"http://127.0.0.1:{self.deployment.url_port}/{path}"

    def part(self, path: str) -> str:
        return self.page(f"locations/__repository__@{self.deployment.location}/{path}")


@dataclass(frozen=True)
class Lost:
    """A run whose GPU was lost while `terms` was at work."""

    run: dg.DagsterRun
    message: str


@pytest.fixture(scope="module")
def pictures() -> Path:
    """The folder of the pictures."""
    folder = Path(os.environ.get("MEDKG_SCREENS") or ROOT / "build" / "screens")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser")) as one:
        yield one


@pytest.fixture(scope="module")
def hospital(
    browser: Browser,
    minilm_dir: Path,
    reranker_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Hospital]:
    home = tmp_path_factory.mktemp("hospital")
    shutil.copytree(SAMPLES, home / "documents")
    asked = [{"_id": str(number), "text": text} for number, text in enumerate(JUDGED)]
    (home / "queries.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in asked))
    judged = "".join(f"{number}\t{document}\t1\n" for number, document in enumerate(JUDGED.values()))
    (home / "qrels.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    folder = tmp_path_factory.mktemp("server")
    played = PlayedGpu(folder)
    server = LocalServer(
        played.binary,
        device="cuda",
        embedding_models={"all-MiniLM-L6-v2": minilm_dir},
        reranking_models={"medkg-reranker-minilm": reranker_dir},
        data_dir=folder / "data",
        log_path=folder / "log.jsonl",
        threads=1,
        arguments=("--dtype", "f32", "--gpu-lost-grace", "600"),
    ).start()
    settings: dict[str, Any] = {"project": "literature_project.py", "location": "literature"}
    try:
        with deployed(home, **settings, MEDKG_ADDRESS=server.address) as deployment:
            deployment.instance.event_log_storage.set_concurrency_slots("gpu", 2)
            run = deployment.wait_for_end(deployment.launch("literature"))
            assert run.is_success, deployment.log("code")
            yield Hospital(deployment, played, server)
    finally:
        server.kill()


@pytest.fixture(scope="module")
def lost(hospital: Hospital) -> Lost:
    """New documents come, and the GPU falls off the bus (Xid 79) while they are embedded and `terms` works."""
    deployment, home = hospital.deployment, hospital.deployment.home
    deployment.turn_on("medkg_gpu_health")
    write_notes(home / "documents", 800)
    (home / "hold").touch()
    embedded = home / "storage" / "embedded"
    before = len(list(embedded.rglob("part-*")))
    run_id = deployment.launch("literature")
    wait_until(lambda: len(list(embedded.rglob("part-*"))) > before, "nothing is embedded")
    hospital.played.xid(79)
    run = deployment.wait_for_end(run_id)
    (home / "hold").unlink()
    assert run.status is dg.DagsterRunStatus.FAILURE
    (event,) = deployment.instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records
    failure = event.event_log_entry.dagster_event
    assert failure is not None
    assert failure.job_failure_data.error is not None
    return Lost(run, failure.job_failure_data.error.message)


def test_the_lineage_shows_every_asset(hospital: Hospital, browser: Browser, pictures: Path) -> None:
    browser.open(hospital.part("asset-groups/medkg/lineage"), width=2200, height=800)
    browser.wait_for(*ASSETS, "Materialized")
    browser.keep(pictures / "lineage.png", above=PRIVATE)


def test_a_materialization_shows_usage_and_its_plot(hospital: Hospital, browser: Browser, pictures: Path) -> None:
    browser.open(hospital.page("assets/retrieval_evaluation?view=events"), height=1050)
    text = browser.wait_for("medkg/reranked_nDCG@10", "medkg/gpu_seconds", "medkg/latency", "medkg/quality")
    assert "cardiology" in text
    browser.show_markdown("medkg/quality")
    width, height = browser.picture_size()
    assert (width > 100, height > 100) == (True, True), "the plot is not drawn"
    browser.keep(pictures / "materialization.png", above=PRIVATE)


def test_a_run_that_lost_its_gpu_says_so(hospital: Hospital, lost: Lost, browser: Browser, pictures: Path) -> None:
    for part in ("GPU failure in step embeddings", hospital.server.address, "request", "no retry"):
        assert part in lost.message
    browser.open(hospital.page(f"runs/{lost.run.run_id}"), height=900)
    text = browser.wait_for("Failure", "RUN_FAILURE", "GPU failure in step embeddings")
    assert hospital.server.address in text
    assert "Xid 79" in text
    assert hospital.deployment.relaunches(lost.run.run_id) == []
    browser.keep(pictures / "failed-run.png", above=PRIVATE)


@pytest.mark.usefixtures("lost")
def test_the_sensor_shows_that_the_gpu_is_gone(hospital: Hospital, browser: Browser, pictures: Path) -> None:
    storage = hospital.deployment.instance.event_log_storage
    limits = lambda: {one.name: one.limit for one in storage.get_pool_limits()}  # noqa: E731
    wait_until(lambda: limits()["gpu"] == 0, "the sensor has not looked")
    browser.open(hospital.page("assets/gpu_health?view=events"), height=800)
    browser.wait_for("medkg/gpu_state", "lost", "Xid 79", hospital.server.address)
    browser.keep(pictures / "gpu-health.png", above=PRIVATE)
    browser.open(hospital.part("sensors/medkg_gpu_health"), height=800)
    browser.wait_for("medkg_gpu_health", "Running")
    browser.keep(pictures / "sensor.png", moving=True, above=PRIVATE)
