"""The auto pipeline in batches, as a code server loads it; where it reads and writes comes from the environment."""

import os

import dagster as dg

from medkg.dagster import GpuServicesResource, medkg_definitions

FOLDER = os.environ["MEDKG_TEST_FOLDER"]

defs = medkg_definitions(
    documents=f"{FOLDER}/documents",
    storage=f"{FOLDER}/tables",
    collection="backfilled",
    batches=3,
    services=GpuServicesResource(address=dg.EnvVar("MEDKG_TEST_SERVER"), tenant="clinic"),
)
