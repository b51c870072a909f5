"""The deployment computes where its operator wants it to, and says so everywhere the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import medkg

    from .deployment import Deployment

ROLES_NEEDED = ("gpu",)


def test_the_device_is_ready_and_the_expected_one(services: medkg.Services, deployment: Deployment) -> None:
    status = services.gpu.status()
    assert status.state == "ready", status.detail
    assert status.active_device
    assert status.server_version
    assert status.uptime >= 0
    if deployment.device is not None:
        asked = deployment.device
        right = status.active_device == asked or status.active_device.startswith(f"{asked}:")
        told = f"computes on {status.active_device}, but [acceptance] device is {asked}: see gpu-server's --device"
        assert right, told


def test_the_roles_are_served(services: medkg.Services, deployment: Deployment) -> None:
    config = deployment.config
    if any(getattr(config, f"{role}_addresses") for role in deployment.roles):
        pytest.skip("the roles are spread over several addresses; each is tested by its own calls")
    assert set(deployment.roles) <= set(services.gpu.status().roles)


def test_the_active_device_is_listed_with_its_memory(services: medkg.Services) -> None:
    active = [device for device in services.gpu.devices() if device.active]
    assert [device.id for device in active] == [services.gpu.status().active_device]
    assert active[0].name
    assert active[0].total_memory_bytes > active[0].leased_memory_bytes >= 0


def test_usage_names_the_device_that_the_status_names(services: medkg.Services, deployment: Deployment) -> None:
    if "embedding" not in deployment.roles or deployment.config.embedding_addresses:
        pytest.skip("embeddings come from elsewhere")
    usage = services.embedding.embed(["Which device computes this?"], model=deployment.embedding_model).usage
    assert usage.device == services.gpu.status().active_device
