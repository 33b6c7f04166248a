"""Figures of a training for TensorBoard, where it is installed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halp_iee.errors import UsageError


class Board:
    """Writes every number of every event as `EVENT/FIELD` over the step.

    Args:
        folder: for the files of one training.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            raise UsageError(
                "nothing can be written for TensorBoard", "the package tensorboard is not installed",
                "pip install tensorboard, or leave --tensorboard out",
            ) from None  # fmt: skip
        self.folder, self._make = folder, SummaryWriter
        self._writer: Any = None

    def begin(self, events: list[dict[str, Any]]) -> None:
        """Start with these events, and nothing that was written before."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._writer = self._make(str(self.folder))
        for event in events:
            self.write(event)

    def write(self, event: Mapping[str, Any]) -> None:
        if self._writer is None:
            self.begin([])
        for name, value in event.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "step":
                self._writer.add_scalar(f"{event['event']}/{name}", value, event["step"])
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
