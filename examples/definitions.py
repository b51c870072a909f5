"""A medkg pipeline in Dagster: copy this file, then change the documents and the questions."""

import os
from pathlib import Path

import dagster as dg

from medkg.dagster import GpuServicesResource, TableIOManager, forkserver_executor, gpu_fail_fast, medkg_assets

QUESTIONS = [
    "Down to which eGFR may dapagliflozin be started to protect the kidneys?",
    "How soon must antibiotics be given in septic shock?",
    "Which anticoagulant is used in atrial fibrillation with a mechanical heart valve?",
]

DOCUMENTS = os.environ.get("MEDKG_DOCUMENTS") or Path(__file__).parent / "documents"

defs = dg.Definitions(
    assets=medkg_assets(documents=DOCUMENTS, questions=QUESTIONS),
    jobs=[dg.define_asset_job("literature")],
    resources={
        "gpu_services": GpuServicesResource(
            address=dg.EnvVar("MEDKG_ADDRESS"), tenant=os.environ.get("MEDKG_TENANT", "demo")
        ),
        "io_manager": TableIOManager(),
    },
    executor=gpu_fail_fast(forkserver_executor),
)
