"""Sensors: of the GPUs' health, of failed runs, of assets that became slower."""

from medkg.dagster.sensors.failed_runs import failed_run_alerts
from medkg.dagster.sensors.gpu_health import gpu_health_sensor
from medkg.dagster.sensors.performance import performance_sensor

__all__ = ["failed_run_alerts", "gpu_health_sensor", "performance_sensor"]
