"""One family of errors, each with what, why and the remedy.

The base lives in the profiler, which runs without this package.
"""

from __future__ import annotations

from halp_profiler.errors import DeviceError, HalpError, TableError, UnstableError, UsageError


class GraphError(HalpError):
    """The network cannot be traced, masked or slimmed as asked."""


class ParityError(HalpError):
    """Two forms of one network that must agree do not; nothing was written."""


class ArtifactError(HalpError):
    """A saved network is missing, broken, or of another network."""


class DataError(HalpError):
    """A data set is missing or broken."""


class CheckpointError(HalpError):
    """A checkpoint is broken or belongs to another run."""


class TrainingError(HalpError):
    """Training went wrong, e.g. the loss became NaN."""


class TargetError(HalpError):
    """The latency target cannot be met; the remedy says what can."""

    exit_code = 4


__all__ = [
    "ArtifactError", "CheckpointError", "DataError", "DeviceError", "GraphError", "HalpError", "ParityError",
    "TableError", "TargetError", "TrainingError", "UnstableError", "UsageError",
]  # fmt: skip
