"""Why something failed, in the few classes that machines tell apart; every exception of medkg has one."""

from __future__ import annotations

from enum import Enum

__all__ = ["FailureClass"]


class FailureClass(str, Enum):
    """Why a call or a step failed, for machines: sensors, alerts, executors, callers."""

    GPU = "GPU"
    """The accelerator is missing, lost or out of memory. The run fails at once; nothing is retried."""
    NETWORK = "NETWORK"
    """The service did not answer, or asked to be left alone for a while. The step is retried."""
    INPUT = "INPUT"
    """The request is wrong, or names something that is not there."""
    ACCESS = "ACCESS"
    """Identity or permission."""
    CONFIGURATION = "CONFIGURATION"
    """The resource's configuration, or no tenant."""
    SERVICE = "SERVICE"
    """The service failed in a way that waiting does not mend."""
