"""What medkg reads from a Dagster context: the run, its tags, the step, the partition.

Asset contexts, op contexts and the contexts of direct invocation (`dg.build_op_context`) spell these differently; this
is the one place that knows how. Tenant and trace are then decided from plain values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import dagster as dg
from dagster._core.errors import DagsterInvalidPropertyError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

StepContext: TypeAlias = dg.AssetExecutionContext | dg.OpExecutionContext | dg.AssetCheckExecutionContext
"""A context that Dagster hands to an asset, an op or an asset check."""


@dataclass(frozen=True)
class StepIdentity:
    """Which run and step a call is made for."""

    run_id: str
    """Id of the Dagster run; `"EPHEMERAL"` under direct invocation."""
    step_key: str
    """Key of the step, with the mapping key in brackets for a dynamic step."""
    tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Tags of the run."""
    partition_keys: Sequence[str] = ()
    """Partition keys of the step: none, one, or a range."""
    retry_number: int = 0
    """Attempts before this one."""

    @classmethod
    def of(cls, context: StepContext) -> StepIdentity:
        """Reads the identity of the step that `context` belongs to.

        Args:
            context: The context Dagster gave to the asset, op or asset check; one of `dg.build_op_context` and
                `dg.build_asset_context` will do.
        """
        op_context = context if isinstance(context, dg.OpExecutionContext) else context.op_execution_context
        partitioned = op_context.has_partition_key or op_context.has_partition_key_range
        return cls(
            run_id=op_context.run_id,
            step_key=_step_key(op_context),
            tags=dict(op_context.run_tags),
            partition_keys=tuple(op_context.partition_keys) if partitioned else (),
            retry_number=_retry_number(op_context),
        )


def _step_key(context: dg.OpExecutionContext) -> str:
    try:
        handle = str(context.op_handle)
    except DagsterInvalidPropertyError:  # direct invocation has no plan, so no handle
        return "direct invocation"
    mapping_key = context.get_mapping_key()
    return f"{handle}[{mapping_key}]" if mapping_key else handle


def _retry_number(context: dg.OpExecutionContext) -> int:
    try:
        return context.retry_number
    except AttributeError:  # direct invocation: Dagster 1.13 reads it from a step that is not there
        return 0
