"""What each kernel of a network costs in ONNX Runtime, from the runtime's own report on every node that it runs."""

from __future__ import annotations

import gc
import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from halp_profiler.backends.base import Request
from halp_profiler.backends.onnx_scenes import shapes_of
from halp_profiler.errors import DeviceError
from halp_profiler.kernel import TWO_SIDED

_NAME = re.compile(r"\b([skn])(\d+)_")  # the runtime may put a word before it: "fused k3_t7"

_REORDER = {"to_blocked": "ReorderInput", "to_plain": "ReorderOutput"}
_SUFFIX = "_kernel_time"
_NODE = re.compile(
    rb'"cat" : "Node",[^{\n]*"dur" :(\d+),"ts" :(\d+),[^{\n]*"name" :"([^"\n]*)_kernel_time","args" : '
    rb'\{.*?"op_name" : "([^"\n]*)"'
)
"""A line of the report, which is long and mostly about shapes: to parse all of it would take as long as the runs."""

_FEWEST, _LONG_S = 5, 0.5  # what takes long is steady: so many runs are enough once this much time is spent


class NodeReport:
    """Runs networks made of scenes and adds up, scene by scene, what their kernels took.

    The runtime's report has whole microseconds. A mean over runs is finer than that, because where in a
    microsecond a node begins is chance.

    Args:
        sessions: makes sessions; see ``OrtSessions``.
        node_ms: what the report itself adds to each node, in ms; subtracted.
    """

    def __init__(self, sessions: Any, node_ms: float = 0.0) -> None:
        self._sessions, self.node_ms = sessions, node_ms
        self._folder = tempfile.TemporaryDirectory(prefix="halp-", ignore_cleanup_errors=True)

    def run(self, model: Any, requests: Sequence[Request], *, min_rounds: int, min_seconds: float) -> np.ndarray:
        """Latency of every scene's kernel in ms, shape (rounds, scenes).

        Args:
            model: of ``onnx_scenes.build(requests)``.
            requests: one a scene.
            min_rounds: runs, after three that are not counted ...
            min_seconds: ... and until this much time is spent.

        Raises:
            DeviceError: the report says nothing of a convolution or a matrix product.
        """
        runs = self._runs(model, min_rounds, min_seconds)
        samples = np.stack([self._scenes(run, requests) for run in runs])
        for i, request in enumerate(requests):
            # Less than the report's resolution may be nothing, but not so many multiplications.
            if request.kernel.op in TWO_SIDED and np.isnan(samples[:, i]).all():
                raise DeviceError(
                    f"{request.kernel.key} cannot be timed",
                    "the runtime's report on the nodes does not name it",
                    "Report this kernel with the version of ONNX Runtime",
                )
        return np.nan_to_num(samples)

    def whole(self, model: Any, *, min_rounds: int) -> tuple[float, int]:
        """The median of what all nodes take together, in ms as reported, and the number of nodes."""
        runs = self._runs(model, min_rounds, 0.0)
        return float(np.median([sum(ms for *_, ms in run) for run in runs])), len(runs[0])

    def _runs(self, model: Any, min_rounds: int, min_seconds: float) -> list[list[tuple[str, str, float]]]:
        session = self._sessions.reported(model, str(Path(self._folder.name) / "report"))
        call = self._sessions.bind(session, shapes_of(model))
        collecting = gc.isenabled()
        gc.disable()
        try:
            for _ in range(2):
                call()
            start, rounds = time.perf_counter(), 0
            while True:
                seconds = time.perf_counter() - start
                if (rounds >= min_rounds and seconds >= min_seconds) or (rounds >= _FEWEST and seconds >= _LONG_S):
                    break
                call()
                rounds += 1
        finally:
            if collecting:
                gc.enable()
        path = Path(session.end_profiling())
        report = path.read_bytes()
        path.unlink()
        return _runs(report)[-rounds:]

    def _scenes(self, run: Sequence[tuple[str, str, float]], requests: Sequence[Request]) -> np.ndarray:
        total = np.full(len(requests), np.nan)
        part, scene = "", -1
        for name, op, ms in run:
            if found := _NAME.search(name):
                part, scene = found[1], int(found[2])
            if not 0 <= scene < len(requests):
                continue
            wanted = _REORDER.get(requests[scene].kernel.op)
            if op == wanted if wanted else part == "k" and op not in _REORDER.values():
                total[scene] = np.nansum([total[scene], ms - self.node_ms])
        return np.maximum(total, 0.0)


def _runs(report: bytes) -> list[list[tuple[str, str, float]]]:
    """Of every run of the network its nodes in order: name, operator, ms."""
    nodes = [
        (int(ts), name.decode(errors="replace"), op.decode(errors="replace"), int(dur) / 1e3)
        for dur, ts, name, op in _NODE.findall(report)
    ] or _nodes(json.loads(report))
    nodes.sort(key=lambda n: n[0])
    seen: dict[str, int] = defaultdict(int)
    runs: list[list[tuple[str, str, float]]] = []
    for _, name, op, ms in nodes:
        at = seen[name]
        seen[name] += 1
        if at == len(runs):
            runs.append([])
        runs[at].append((name, op, ms))
    return runs


def _nodes(report: Sequence[Mapping[str, Any]]) -> list[tuple[int, str, str, float]]:
    """What ``_NODE`` finds, from a report that is written in another way."""
    return [
        (e["ts"], e["name"].removesuffix(_SUFFIX), e["args"]["op_name"], e["dur"] / 1e3)
        for e in report
        if e.get("cat") == "Node" and e["name"].endswith(_SUFFIX)
    ]
