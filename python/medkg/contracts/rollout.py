"""The embedding stage of a pipeline that is moved step by step: the older one, or gpu-server's, as the flags say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medkg.contracts.older import RESULT_KEY, request_from_data, result_to_data
from medkg.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from medkg.contracts.flags import FeatureFlags
    from medkg.contracts.stage import EmbeddingStage


class EmbeddingRollout:
    """Takes ``context.data`` and gives the next one; what it was given stays as it is.

    A failure of gpu-server is never answered by the older stage: which of the two runs is the operator's choice.
    """

    __slots__ = ("flags", "older", "stage")

    def __init__(
        self,
        stage: EmbeddingStage,
        flags: FeatureFlags,
        *,
        older: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
    ) -> None:
        """Take both stages.

        Args:
            stage: The typed stage.
            flags: Which one runs, and what is handed on.
            older: The project's older stage, ``data`` to ``data``; None once it is gone.

        Raises:
            ConfigError: The flags ask for the older stage, and there is none.
        """
        if not flags.use_gpu_services and older is None:
            message = "MEDKG_USE_GPU_SERVICES is off and there is no older stage; switch it on, or give `older`"
            raise ConfigError(message, field_violations=[("MEDKG_USE_GPU_SERVICES", message)])
        self.stage = stage
        self.flags = flags
        self.older = older

    def run(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Embed ``chunks``. Later stages read the result with :func:`medkg.contracts.embeddings_of`.

        Raises:
            MissingResultError: There are no chunks.
            EmbeddingError: As :meth:`EmbeddingStage.run`.
            GpuNotAvailableError: As :meth:`EmbeddingStage.run`.
        """
        if not self.flags.use_gpu_services and self.older is not None:
            return dict(self.older(dict(data)))
        result = self.stage.run(request_from_data(data))
        if self.flags.typed_stage:
            return {**data, RESULT_KEY: result}
        return result_to_data(result, data)
