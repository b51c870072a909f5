"""The manual pipeline: PDF are handed to a docling-serve, a gate waits for them, and a sensor launches the rest."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import medkg
from medkg.dagster import GpuServicesResource, conversion_sensor, medkg_assets, medkg_definitions
from medkg.local import LocalServer
from tests.docling_serve import FAILED, DoclingServe


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    home = tmp_path / "home"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


@pytest.fixture
def definitions(docling_serve: DoclingServe, server: LocalServer, tmp_path: Path) -> dg.Definitions:
    documents = tmp_path / "documents"
    documents.mkdir()
    for name in ("trial", "secret"):
        (documents / f"{name}.pdf").write_bytes(b"%PDF-1.7 " + name.encode())
    (documents / "liar.pdf").write_text("# This is Markdown\n", encoding="utf-8")
    (documents / "gout.md").write_text("# Gout\n\nAllopurinol lowers urate.\n", encoding="utf-8")
    return medkg_definitions(
        documents=documents,
        services=GpuServicesResource(address=server.address),
        storage=str(tmp_path / "tables"),
        collection="manual",
        docling_serve=docling_serve.address,
        manual=True,
    )


class Desk:
    """Launches the project's jobs and evaluates its sensor, as Dagster's daemon would."""

    def __init__(self, definitions: dg.Definitions, instance: dg.DagsterInstance) -> None:
        self._definitions, self._instance = definitions, instance
        self._cursor: str | None = None
        self._tags = {"medkg/tenant_id": "clinic-pdf"}

    def run(self, job: str, **options: Any) -> dg.ExecuteInProcessResult:
        found = self._definitions.resolve_job_def(job)
        options = {"tags": self._tags, "raise_on_error": False, **options}
        return found.execute_in_process(instance=self._instance, **options)

    def tick(self) -> dg.SensorResult:
        """One evaluation of the sensor."""
        (sensor,) = self._definitions.sensors or ()
        with dg.build_sensor_context(instance=self._instance, cursor=self._cursor) as context:
            result = sensor(context)  # type: ignore[operator]
        assert isinstance(result, dg.SensorResult)
        self._cursor = result.cursor
        return result

    def skipped(self) -> str:
        result = self.tick()
        assert not result.run_requests
        assert result.skip_reason is not None
        return str(result.skip_reason.skip_message)


@pytest.fixture
def desk(definitions: dg.Definitions, instance: dg.DagsterInstance) -> Desk:
    return Desk(definitions, instance)


def test_a_gate_waits_for_the_conversions_and_a_sensor_launches_the_rest_once(
    desk: Desk, docling_serve: DoclingServe, server: LocalServer
) -> None:
    assert desk.skipped() == "nothing to convert"
    handed_in = desk.run("literature_convert")
    assert handed_in.success
    assert sorted(docling_serve.files.values()) == ["secret.pdf", "trial.pdf"]
    aside = handed_in.asset_materializations_for_node("pdfs")[0].metadata["medkg/set_aside"]
    assert [str(record.data["document"])[:5] for record in aside.records] == ["liar-"]

    assert desk.skipped() == "docling-serve works on 2 documents"
    (failed,) = desk.run("literature").get_step_failure_events()
    reported = failed.step_failure_data.user_failure_data
    assert (failed.step_key, reported is not None) == ("documents", True)
    assert reported is not None
    assert "2 of 3 conversions are not done" in str(reported.description)

    docling_serve.finish("secret.pdf", FAILED)
    assert desk.skipped() == "docling-serve works on 1 documents"
    docling_serve.finish("trial.pdf")
    (request,) = desk.tick().run_requests or ()
    assert request.tags["medkg/tenant_id"] == "clinic-pdf"
    assert desk.skipped() == "nothing to convert"

    stages = [dg.AssetKey(name) for name in ("documents", "chunks", "embeddings", "vector_index")]
    resumed = desk.run("literature", tags=request.tags, asset_selection=stages)
    assert resumed.success
    gate = resumed.asset_materializations_for_node("documents")[0].metadata
    (record,) = gate["medkg/set_aside"].records
    assert "encrypted" in str(record.data["reason"])
    with medkg.connect(address=server.address, tenant="clinic-pdf") as services:
        hits = services.vector.search("manual", services.embedding.embed(["kidney trial"]).vectors, k=100)[0]
        sources = {(hit.payload["source"], hit.payload["page"] is not None) for hit in hits if hit.payload}
    assert sources == {("trial.pdf", True), ("gout.md", False)}

    docling_serve.results.clear()  # it forgets what was fetched; what is converted is in storage
    again = desk.run("literature_convert")
    assert again.asset_materializations_for_node("conversions")[0].metadata["medkg/waiting"].value == 1
    assert list(docling_serve.files.values()).count("trial.pdf") == 1


def test_a_docling_serve_that_is_away_delays_the_sensor_and_fails_nothing(
    desk: Desk, docling_serve: DoclingServe
) -> None:
    assert desk.run("literature_convert").success
    docling_serve.finish("trial.pdf")
    docling_serve.finish("secret.pdf")
    docling_serve.shutdown()
    docling_serve.server_close()
    assert "is not available" in desk.skipped()


def test_manual_conversion_needs_the_address_of_a_docling_serve() -> None:
    with pytest.raises(medkg.ConfigError, match="docling_serve"):
        medkg_assets(documents="documents", manual=True)
    assets = medkg_assets(documents="documents", manual=True, docling_serve="http://docling:5001", key_prefix=["lab"])
    assert conversion_sensor(assets, docling_serve="http://docling:5001", job_name="x").name == "lab_conversion_sensor"
