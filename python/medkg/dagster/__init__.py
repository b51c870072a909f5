"""medkg in a Dagster project: a resource, the assets of the pipeline, and an executor that fails fast on GPU loss.

This is the only part of medkg that imports dagster; it comes with `pip install 'medkg[dagster]'`.
"""

from importlib import import_module as _import

from medkg.extras import packages_of

with packages_of("dagster", "dagster", "pyarrow", "tomlkit", user="medkg.dagster needs"):
    for _package in ("dagster", "pyarrow", "tomlkit"):
        _import(_package)

from medkg.dagster.alerts import Alert, AlertChannel, AlertError, EmailAlerts, SlackAlerts, WebhookAlerts
from medkg.dagster.assets import medkg_assets
from medkg.dagster.checks import medkg_asset_checks
from medkg.dagster.choices import AnswersConfig, DocumentsConfig
from medkg.dagster.clients import EmbeddingResource, GpuResource, RerankingResource, VectorResource
from medkg.dagster.component import MedkgPipelineComponent
from medkg.dagster.connection import MedkgConnection
from medkg.dagster.connection_options import CacheConfig, CoalesceConfig, FallbackConfig, RegistryConfig, TlsConfig
from medkg.dagster.conversion_assets import conversion_sensor
from medkg.dagster.evaluation import EvaluationConfig, retrieval_evaluation
from medkg.dagster.executor import GpuRunFailure, forkserver_executor, gpu_fail_fast
from medkg.dagster.failures import FAILURE_CLASS_KEY, step_failures
from medkg.dagster.io_manager import TableIOManager
from medkg.dagster.outputs import (
    Answer,
    ChunkSet,
    Conversion,
    ConversionSet,
    DocumentRecord,
    DocumentSet,
    EmbeddingSet,
    IndexSummary,
    Passage,
    SetAside,
)
from medkg.dagster.pipeline import medkg_definitions
from medkg.dagster.resource import GpuServicesResource, RunServices
from medkg.dagster.run_failure import fail_run, gpu_failure_hook
from medkg.dagster.sensors import failed_run_alerts, gpu_health_sensor, performance_sensor
from medkg.dagster.tenant import TENANT_TAG, TenantError, resolve_tenant
from medkg.dagster.trace import EXTERNAL_TRACE_TAG, TRACEPARENT_TAG, resolve_trace, trace_id_of_run
from medkg.failure_class import FailureClass

__all__ = [
    "EXTERNAL_TRACE_TAG",
    "FAILURE_CLASS_KEY",
    "TENANT_TAG",
    "TRACEPARENT_TAG",
    "Alert",
    "AlertChannel",
    "AlertError",
    "Answer",
    "AnswersConfig",
    "CacheConfig",
    "ChunkSet",
    "CoalesceConfig",
    "Conversion",
    "ConversionSet",
    "DocumentRecord",
    "DocumentSet",
    "DocumentsConfig",
    "EmailAlerts",
    "EmbeddingResource",
    "EmbeddingSet",
    "EvaluationConfig",
    "FailureClass",
    "FallbackConfig",
    "GpuResource",
    "GpuRunFailure",
    "GpuServicesResource",
    "IndexSummary",
    "MedkgConnection",
    "MedkgPipelineComponent",
    "Passage",
    "RegistryConfig",
    "RerankingResource",
    "RunServices",
    "SetAside",
    "SlackAlerts",
    "TableIOManager",
    "TenantError",
    "TlsConfig",
    "VectorResource",
    "WebhookAlerts",
    "conversion_sensor",
    "fail_run",
    "failed_run_alerts",
    "forkserver_executor",
    "gpu_fail_fast",
    "gpu_failure_hook",
    "gpu_health_sensor",
    "medkg_asset_checks",
    "medkg_assets",
    "medkg_definitions",
    "performance_sensor",
    "resolve_tenant",
    "resolve_trace",
    "retrieval_evaluation",
    "step_failures",
    "trace_id_of_run",
]
