"""Times structures of one network in the deployment runtime: slim, export, run."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from halp_iee.export.onnx import export_onnx
from halp_iee.measure.sessions import Sessions, time_sessions

if TYPE_CHECKING:
    from torch import Tensor

    from halp_iee.graph import ChannelGraph


@dataclass
class RuntimeClock:
    """Measures a structure beside the dense network, so that a drift of the machine cancels.

    A latency does not depend on the weights, so the networks are timed with those they have. The last structure's file
    is kept, so that timing it once more does not build it once more.

    Attributes:
        graph: of the dense network, which is slimmed afresh for every structure.
        example: the inputs, with the batch that is to be timed.
        threads: of the runtime.
    """

    graph: ChannelGraph
    example: Tensor
    threads: int = 1
    _dense: bytes | None = field(default=None, repr=False)
    _last: tuple[tuple[tuple[str, bytes], ...], bytes] | None = field(default=None, repr=False)
    _dense_ms: float | None = None

    def _export(self, keep: Mapping[str, np.ndarray] | None) -> bytes:
        model = self.graph.slim(keep) if keep is not None else copy.deepcopy(self.graph.model)
        with tempfile.TemporaryDirectory() as folder:
            return export_onnx(model, self.example, Path(folder) / "timed.onnx").path.read_bytes()

    @property
    def dense_ms(self) -> float:
        """Latency of the dense network; measured once, and the scale of all others."""
        if self._dense_ms is None:
            self._dense_ms = self._time({"dense": self._dense_file}).ms("dense")
        return self._dense_ms

    @property
    def _dense_file(self) -> bytes:
        if self._dense is None:
            self._dense = self._export(None)
        return self._dense

    def _file_of(self, keep: Mapping[str, np.ndarray]) -> bytes:
        units = tuple((name, np.asarray(kept).tobytes()) for name, kept in keep.items())
        if self._last is None or self._last[0] != units:
            self._last = units, self._export(keep)
        return self._last[1]

    def scale_to(self, dense_ms: float) -> None:
        """Take a dense latency that was measured before as the scale of what is measured from now on."""
        self._dense_ms = dense_ms

    def _time(self, files: Mapping[str, bytes]) -> Sessions:
        return time_sessions(files, threads=self.threads, batch=len(self.example), most=12, error=0.006, limit_s=10.0)

    def __call__(self, keep: Mapping[str, np.ndarray]) -> float:
        """Latency in ms of the network that keeps these units: its ratio to the dense one, on the dense one's scale."""
        now = self._time({"dense": self._dense_file, "slim": self._file_of(keep)})
        return self.dense_ms * now.ratio("slim", "dense")
