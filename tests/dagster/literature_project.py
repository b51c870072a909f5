"""A user's project as the screens in docs show it: medkg's pipeline, an evaluation, an asset of one's own, a sensor.

Dagster's home has `documents`, `queries.jsonl` and `qrels.tsv`; outputs go to `storage` there. The paths are relative,
so that no page names a folder of the machine.
"""

import os
import re
import time
from collections import Counter
from pathlib import Path

import dagster as dg
import pyarrow as pa

from medkg.dagster import (
    GpuServicesResource,
    TableIOManager,
    forkserver_executor,
    gpu_fail_fast,
    gpu_health_sensor,
    medkg_asset_checks,
    medkg_assets,
    retrieval_evaluation,
)
from medkg.dagster.outputs import ChunkSet

os.chdir(os.environ["DAGSTER_HOME"])
HOLD = Path("hold")
"""While it is there, `terms` is at work."""

literature = medkg_assets(
    documents="documents",
    storage="storage",
    questions=[
        "Down to which eGFR may dapagliflozin be started to protect the kidneys?",
        "How soon must antibiotics be given in septic shock?",
        "Which anticoagulant is used in atrial fibrillation with a mechanical heart valve?",
    ],
)
evaluation = retrieval_evaluation(literature[-2], queries="queries.jsonl", judgements="qrels.tsv")


@dg.asset(group_name="medkg", kinds={"python"})
def terms(chunks: ChunkSet) -> dg.Output[pa.Table]:
    """How often the literature uses which word; works on the processor, beside the embeddings."""
    counted = Counter(word for chunk in chunks.chunks for word in re.findall(r"[a-z]{6,}", chunk.text.lower()))
    while HOLD.exists():
        time.sleep(0.05)
    rows = [{"term": term, "count": count} for term, count in counted.most_common(500)]
    return dg.Output(pa.Table.from_pylist(rows), metadata={"dagster/row_count": len(rows)})


defs = dg.Definitions(
    assets=[*literature, evaluation, terms],
    asset_checks=medkg_asset_checks(literature),
    jobs=[dg.define_asset_job("literature")],
    sensors=[gpu_health_sensor(minimum_interval_seconds=2)],
    resources={
        "gpu_services": GpuServicesResource(address=dg.EnvVar("MEDKG_ADDRESS"), tenant="cardiology"),
        "io_manager": TableIOManager(base_path="storage"),
    },
    executor=gpu_fail_fast(forkserver_executor),
)
