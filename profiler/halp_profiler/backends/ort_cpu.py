"""ONNX Runtime on the CPU: every kernel timed as it runs inside a network, in the layout it has there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from halp_profiler.backends.base import Request
from halp_profiler.devices import host_fingerprint
from halp_profiler.errors import DeviceError
from halp_profiler.geometry import output_spatial
from halp_profiler.kernel import Kernel
from halp_profiler.steps import Steps
from halp_profiler.table import Header, Point
from halp_profiler.timing import Timing, time_interleaved

_SESSION_MS = 0.25  # a session runs its kernel as often as fills about this, so that the call itself hardly counts
_MAX_REPEATS = 48
_GMACS_A_MS = 0.04  # a rough guess of one core, only to choose the number of repetitions
_UNSTABLE_OVER = 0.08
_DISTURBED_OVER = 1.12  # the reference this much slower than usual: another process has the machine
_PATIENCE = 5  # batches after which a slow machine counts as the usual one


@dataclass
class _Prepared:
    calls: dict[str, Callable[[], object]]
    repeats: int
    carried: bool


class OrtCpu:
    """Times kernels in ONNX Runtime's CPU provider.

    For every point the kernel is placed between two convolutions, the runtime optimises that network, and
    the kernel is cut out of the result with its fusions, its blocked layout and the reorderings that its
    widths force (``onnx_cut``). The piece, repeated until a call takes about 0.25 ms, is timed with inputs
    and outputs bound; the cost of an empty call is subtracted, and the rest divided by the repetitions.
    Kernels with a residual addition are timed as the difference between n + 1 and one repetition, since the
    first one copies the residual that a network would overwrite in place.

    Args:
        threads: intra-op threads.
        batch: images per call.
        min_rounds, min_seconds: per point, see ``time_interleaved``.

    Raises:
        DeviceError: ONNX Runtime or onnx is not installed.
    """

    name = "onnxruntime-cpu"
    together = 6  # points in one set of interleaved rounds

    def __init__(self, *, threads: int = 1, batch: int = 1, min_rounds: int = 9, min_seconds: float = 0.004) -> None:
        try:
            import onnx  # noqa: F401  (the builder needs it; better to say so at once)
            import onnxruntime
        except ImportError as e:
            raise DeviceError(
                "Nothing can be timed with ONNX Runtime",
                f"the package {e.name} is not installed",
                "Install it: pip install onnxruntime onnx",
            ) from e
        if not hasattr(onnxruntime, "InferenceSession"):
            raise DeviceError(
                "Nothing can be timed with ONNX Runtime",
                "its installation is broken, as when both onnxruntime and onnxruntime-gpu are installed",
                "Uninstall both and install one of them",
            )
        self._ort = onnxruntime
        self.threads, self.batch = threads, batch
        self._min_rounds, self._min_seconds = min_rounds, min_seconds
        self._folder = tempfile.TemporaryDirectory(prefix="halp-", ignore_cleanup_errors=True)
        self._rng = np.random.default_rng(0)
        self.overhead_ms = self._measure_overhead()
        self.block = self._find_block()
        self._reference = self._prepare(Request(_CONV, 64, 64)).calls["many"]
        self._reference_ms = time_interleaved({"": self._reference}, min_seconds=0.02, min_rounds=20)[""].median_ms
        self._slow_in_a_row = 0

    def header(self) -> Header:
        return Header(
            device={**host_fingerprint(), "threads": self.threads},
            backend=self.name,
            backend_version=self._ort.__version__,
            precision="fp32",
            layout="nchw",
            batch=self.batch,
            source="measured",
            how={
                "method": "kernel cut from the optimised graph between two convolutions, repeated in one session",
                "statistics": f"median and quartiles of {self._min_rounds} or more interleaved rounds",
                "empty_call_ms": round(self.overhead_ms, 5),
                "unstable_over": _UNSTABLE_OVER,
                "disturbed_over": _DISTURBED_OVER,
                "steps": {family: s.to_json() for family, s in self._steps().items()},
                "numpy": np.__version__,
            },
        )

    def steps(self, kernel: Kernel) -> Steps:
        """The blocked layout pads channels to whole blocks; it is left where input channels are no multiple of 4
        (pools: of a block), and a convolution of less than a block reads the plain layout at any width."""
        return self._steps().get(kernel.family, Steps())

    def _steps(self) -> dict[str, Steps]:
        b = self.block
        if b == 1:
            return {}
        return {
            "conv": Steps(align=4, block_in=b, block_out=b, free_below=b),
            "depthwise": Steps(align=4, block_in=b, block_out=b),
            "pointwise": Steps(align=4, block_in=b, block_out=b),
            "pool": Steps(align=b, block_in=b, block_out=b),
            "copy": Steps(align=4),
        }

    def refusal(self, kernel: Kernel) -> str | None:
        if kernel.op in ("conv", "conv_transpose") and len(kernel.kernel_size) != len(kernel.spatial):
            return "its window and its input have different numbers of dimensions"
        return None

    def measure(self, requests: Sequence[Request]) -> list[Point]:
        """One point a request; unsteady ones are measured once more, and flagged if they stay so.

        A reference convolution is timed along with them. Where it is slower than it was before, another
        process has the machine: everything is measured again, twice at most, and flagged ``disturbed``
        if that does not help. When the reference stays slow for long, that is the machine's pace from then on.
        """
        prepared = [self._prepare(r) for r in requests]
        points, slowdown = self._quietest(requests, prepared, self._min_rounds)
        shaky = [i for i, p in enumerate(points) if p.flags]
        if shaky:
            some, theirs = [requests[i] for i in shaky], [prepared[i] for i in shaky]
            again, _ = self._quietest(some, theirs, 3 * self._min_rounds, tries=1)
            for i, point in zip(shaky, again, strict=True):
                points[i] = point
        if slowdown <= _DISTURBED_OVER:
            return points
        return [replace(p, flags=(*p.flags, "disturbed")) for p in points]

    def _quietest(
        self, requests: Sequence[Request], prepared: Sequence[_Prepared], rounds: int, tries: int = 3
    ) -> tuple[list[Point], float]:
        """The points of the try in which the reference was quickest, and how much slower than usual it was."""
        best: list[Point] = []
        least = float("inf")
        for _ in range(tries):
            points, reference_ms = self._time(requests, prepared, rounds)
            if reference_ms < least:
                best, least = points, reference_ms
            if least <= _DISTURBED_OVER * self._reference_ms:
                break
        slowdown = least / self._reference_ms
        self._slow_in_a_row = self._slow_in_a_row + 1 if slowdown > _DISTURBED_OVER else 0
        self._reference_ms = min(self._reference_ms, least)
        if self._slow_in_a_row >= _PATIENCE:
            self._reference_ms, self._slow_in_a_row = least, 0
        return best, slowdown

    def _time(
        self, requests: Sequence[Request], prepared: Sequence[_Prepared], rounds: int
    ) -> tuple[list[Point], float]:
        calls = {f"{i}{name}": call for i, p in enumerate(prepared) for name, call in p.calls.items()}
        calls["reference"] = self._reference
        timings = time_interleaved(
            calls, min_rounds=rounds, min_seconds=self._min_seconds, warmup=1, unstable_over=_UNSTABLE_OVER
        )
        pairs = zip(requests, prepared, strict=True)
        points = [self._point(r, p, timings, i) for i, (r, p) in enumerate(pairs)]
        return points, timings["reference"].median_ms

    def _point(self, request: Request, prepared: _Prepared, timings: dict[str, Timing], i: int) -> Point:
        timing = timings[f"{i}many"]
        base = timings[f"{i}one"].median_ms if prepared.carried else self.overhead_ms
        share = prepared.repeats - 1 if prepared.carried else prepared.repeats
        median, p25, p75 = (max(0.0, (ms - base) / share) for ms in (timing.median_ms, timing.p25_ms, timing.p75_ms))
        flags = ("unstable",) if timing.unstable else ()
        return Point(request.kernel, request.c_in, request.c_out, median, p25, p75, timing.samples, flags)

    def _prepare(self, request: Request) -> _Prepared:
        from halp_profiler.backends import onnx_cut, onnx_kernels

        kernel = request.kernel
        built = onnx_kernels.build(kernel, request.c_in, request.c_out, self.batch)
        try:
            piece = onnx_cut.cut(self._optimised(built), has_next=onnx_kernels.has_next(kernel))
            shapes = self._shapes(built, piece)
            repeats = _repeats(kernel, request.c_in, request.c_out, self.batch) + (piece.carried is not None)
            calls = {"many": self._bound(onnx_cut.repeated(piece, repeats, shapes), shapes)}
            if piece.carried:
                calls["one"] = self._bound(onnx_cut.repeated(piece, 1, shapes), shapes)
        except self._failures() as e:
            raise DeviceError(
                f"ONNX Runtime cannot run {kernel.key} with {request.c_in} channels in and {request.c_out} out",
                str(e).splitlines()[0][:200],
                "Report this kernel, or leave it out of the sweep",
            ) from e
        return _Prepared(calls, repeats, piece.carried is not None)

    def _shapes(self, built: Any, piece: Any) -> dict[str, tuple[int, ...]]:
        """Shapes of the piece's inputs, with the channels that the runtime's layout really stores."""
        declared = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in built.graph.input}
        probes = [shape for name, shape in declared.items() if name.startswith("probe_")]
        shapes: dict[str, tuple[int, ...]] = {}
        for name, stored in piece.entries.items():
            if stored is None:
                shapes[name] = declared[name]
            else:
                n, _, *spatial = probes.pop(0)
                shapes[name] = (n, stored, *spatial)
        return shapes

    def _optimised(self, model: Any) -> Any:
        import onnx

        options = self._options("ORT_ENABLE_ALL")
        path = Path(self._folder.name) / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        self._ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(str(path))

    def _bound(self, model: Any, shapes: dict[str, tuple[int, ...]]) -> Callable[[], object]:
        session = self._ort.InferenceSession(
            model.SerializeToString(), self._options("ORT_DISABLE_ALL"), providers=["CPUExecutionProvider"]
        )
        binding = session.io_binding()
        for value in session.get_inputs():
            data = self._rng.standard_normal(shapes[value.name], dtype=np.float32)
            binding.bind_ortvalue_input(value.name, self._ort.OrtValue.ortvalue_from_numpy(data))
        name = session.get_outputs()[0].name
        binding.bind_output(name)
        session.run_with_iobinding(binding)
        binding.bind_ortvalue_output(name, binding.get_outputs()[0])  # the same buffer from now on
        return lambda: session.run_with_iobinding(binding)

    def _options(self, level: str) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.graph_optimization_level = getattr(self._ort.GraphOptimizationLevel, level)
        return options

    def _failures(self) -> tuple[type[BaseException], ...]:
        state = self._ort.capi.onnxruntime_pybind11_state
        names = (
            "Fail",
            "InvalidArgument",
            "InvalidGraph",
            "NotImplemented",
            "RuntimeException",
            "NoSuchFile",
        )
        return tuple(getattr(state, n) for n in names if hasattr(state, n))

    def _measure_overhead(self) -> float:
        from halp_profiler.backends.onnx_kernels import Drawing

        empty = Drawing()
        empty.output(empty.node("Identity", [empty.input("x", (1,))]))
        call = self._bound(empty.model(), {"x": (1,)})
        return time_interleaved({"empty": call}, min_seconds=0.02, min_rounds=20)["empty"].p25_ms

    def _find_block(self) -> int:
        """Channels in a block of the runtime's own layout; 1 where it has none."""
        from halp_profiler.backends import onnx_cut, onnx_kernels

        piece = onnx_cut.cut(self._optimised(onnx_kernels.build(_CONV, 1, 1, 1)), has_next=True)
        return next(iter(piece.entries.values())) or 1


def _repeats(kernel: Kernel, c_in: int, c_out: int, batch: int) -> int:
    outputs = batch * c_out * int(np.prod(output_spatial(kernel)))
    macs = outputs * int(np.prod(kernel.kernel_size or (1,))) * (kernel.group_width or c_in)
    guess_ms = max(macs / 1e9 / _GMACS_A_MS, outputs * 4 / 1e7, 0.002)
    return int(np.clip(_SESSION_MS / guess_ms, 1, _MAX_REPEATS))


_CONV = Kernel("conv", (8, 8), (3, 3), (1, 1), (1, 1))
