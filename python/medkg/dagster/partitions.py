"""Documents in batches, and tenants beside each other: how the pipeline's assets are partitioned.

A document's batch follows from its id alone, by a hash: it stays in its batch whatever is added or taken away, batches
are about equally large, and no list of them has to be kept. The number of batches bounds the memory of a step; changing
it moves documents, which costs no embedding, since what is embedded is found by its text.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import dagster as dg

from medkg.dagster.tenant import TENANT_DIMENSION
from medkg.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medkg.dagster.step import StepIdentity

BATCH_DIMENSION: Final = "batch"
"""Dimension of a multi-partition key that names the batch of documents."""
TENANT_PLACE: Final = "{tenant}"
"""Stands for the tenant's name in a path of documents."""
_MOST_BATCHES: Final = 25_000
"""What Dagster's pages and storage are made for."""


@dataclass(frozen=True)
class DocumentPartitions:
    """Batches of documents, of one tenant or of each of several."""

    batches: int
    """How many batches."""
    tenants: tuple[str, ...] | None = None
    """Whose; None where a run's tenant comes from elsewhere."""

    @classmethod
    def of(cls, batches: int | None, tenants: Sequence[str] | None, paths: Sequence[str]) -> DocumentPartitions | None:
        """The partitions that are asked for; None for none.

        Raises:
            medkg.ConfigError: There are too few or too many batches, or all tenants would read the same documents.
        """
        if batches is None and tenants is None:
            return None
        count = 1 if batches is None else batches
        if not 1 <= count <= _MOST_BATCHES:
            raise _wrong("batches", f"{count} is out of range; use 1 to {_MOST_BATCHES}")
        if tenants is not None and not tenants:
            raise _wrong("tenants", "names nobody; leave it out, or name at least one")
        if tenants is not None and any(TENANT_PLACE not in path for path in paths):
            problem = f"all tenants would read the same files; write {TENANT_PLACE!r} where the tenant's name stands"
            raise _wrong("documents", problem)
        return cls(count, None if tenants is None else tuple(tenants))

    @property
    def definition(self) -> dg.PartitionsDefinition[str]:
        """Dagster's definition: `batch`, or the dimensions `batch` and `tenant`."""
        batches = dg.StaticPartitionsDefinition([self._key(number) for number in range(self.batches)])
        if self.tenants is None:
            return batches
        tenants = dg.StaticPartitionsDefinition(list(self.tenants))
        return dg.MultiPartitionsDefinition({BATCH_DIMENSION: batches, TENANT_DIMENSION: tenants})

    def has(self, document_id: str, step: StepIdentity) -> bool:
        """Whether a document belongs to the partitions that a step works on."""
        own = {
            key.keys_by_dimension[BATCH_DIMENSION] if isinstance(key, dg.MultiPartitionKey) else key
            for key in step.partition_keys
        }
        return self.batch_of(document_id) in own

    def batch_of(self, document_id: str) -> str:
        """Key of a document's batch."""
        number = int.from_bytes(sha256(document_id.encode()).digest()[:8], "big") % self.batches
        return self._key(number)

    def _key(self, number: int) -> str:
        return f"{number:0{len(str(self.batches - 1))}d}"


def _wrong(field: str, problem: str) -> ConfigError:
    return ConfigError(f"{field}: {problem}", field_violations=[(field, problem)])
