"""Whose data a step works on.

The order is fixed, the first that is there wins: an explicit argument, the `tenant` dimension of the partition, the run
tag `medkg/tenant_id`, the resource's configuration. Nothing found is an error, and so is a blank value: a step never
falls through to somebody else's tenant because a tag was left empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagster import MultiPartitionKey

from medkg.errors import ConfigError

if TYPE_CHECKING:
    from medkg.dagster.step import StepIdentity

TENANT_TAG = "medkg/tenant_id"
"""Run tag that names the tenant."""
TENANT_DIMENSION = "tenant"
"""Dimension of a multi-partition key that names the tenant."""


class TenantError(ConfigError):
    """No tenant, a blank one, or several at once. Nothing was sent."""


def resolve_tenant(step: StepIdentity, *, explicit: str | None = None, default: str | None = None) -> str:
    """Decides the tenant of a step.

    Args:
        step: The step.
        explicit: What the caller named; wins over everything.
        default: The resource's configuration; used last.

    Returns:
        The tenant id, not blank. Its grammar is checked by the client, before anything is sent.

    Raises:
        TenantError: Nothing names a tenant, something names a blank one, or a range of partitions covers several.
    """
    for source, value in (
        ("the argument `tenant`", explicit),
        (f"the partition dimension `{TENANT_DIMENSION}`", _tenant_of_partition(step)),
        (f"the run tag `{TENANT_TAG}`", step.tags.get(TENANT_TAG)),
        ("the resource's `tenant`", default),
    ):
        if value is None:
            continue
        if not value.strip():
            msg = f"step {step.step_key}: {source} is blank; give a tenant id, or remove it to use the next source"
            raise TenantError(msg)
        return value
    msg = (
        f"step {step.step_key}: no tenant. Launch the run with the tag {TENANT_TAG}=..., partition by"
        f" `{TENANT_DIMENSION}`, or set `tenant` on the resource"
    )
    raise TenantError(msg)


def _tenant_of_partition(step: StepIdentity) -> str | None:
    tenants = {
        key.keys_by_dimension[TENANT_DIMENSION]
        for key in step.partition_keys
        if isinstance(key, MultiPartitionKey) and TENANT_DIMENSION in key.keys_by_dimension
    }
    if len(tenants) > 1:
        msg = (
            f"step {step.step_key}: its partitions belong to {len(tenants)} tenants ({', '.join(sorted(tenants))});"
            " launch one run per tenant"
        )
        raise TenantError(msg)
    return tenants.pop() if tenants else None
