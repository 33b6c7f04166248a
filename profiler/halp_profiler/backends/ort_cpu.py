"""ONNX Runtime on the CPU: every kernel timed as it runs inside a network, in the layout it has there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from halp_profiler.backends.base import Request
from halp_profiler.backends.ort_session import OrtSessions
from halp_profiler.backends.rounds import DISTURBED_OVER, UNSTABLE_OVER
from halp_profiler.devices import host_fingerprint
from halp_profiler.errors import DeviceError
from halp_profiler.geometry import output_spatial
from halp_profiler.kernel import Kernel, KernelRange
from halp_profiler.steps import Steps
from halp_profiler.table import Header, Point
from halp_profiler.timing import time_interleaved
from halp_profiler.watch import CpuWatch

_MOST = 48 << 20  # bytes that a network is made to touch in a run: more than a core's share of any last cache
_UNKNOWN = 16 << 20  # bytes that a network touches of which nothing is said
_KEPT = 0.7  # of a network, in the middle of the sizes that one prunes to
_TRIES = 3
_PATIENCE = 5  # networks after which a slow machine counts as the usual one, and a busy one as no longer worth waiting
_FINE_MS = 0.002  # a spread of this little is the report's own resolution
_NODES = 48  # of the network that shows what the report itself costs


class OrtCpu:
    """Times kernels in ONNX Runtime's CPU provider.

    Some dozens of kernels are put into one network, each behind what writes its input and before a
    convolution that reads its output, with weights of its own (``onnx_scenes``). The runtime optimises that network,
    chooses fusions and layouts, and reports what every node takes (``ort_report``). So a kernel finds the
    caches as it would inside a network: its input warm, its weights cold. What the reordering between the
    runtime's blocked layout and the framework's costs is not charged to a kernel: it has kernels of its
    own, ``to_blocked`` and ``to_plain``. One network fits into the last cache and another does not, so the
    scenes touch as much in a run as the pruned network will, or a matrix is multiplied that makes up for it.

    A reference convolution is in every such network, and latencies are given at the pace that it had at first: a clock
    that drifts by some percent takes all kernels along. Where it is much slower than before, or another process had the
    cores, or a kernel is unsteady by itself, it is run again, twice at most and in a network of the shaky ones, and
    the point is flagged if that does not help.

    Args:
        threads: intra-op threads.
        batch: images per call.
        min_rounds, min_seconds: runs of a network, and the least time spent on them.

    Raises:
        DeviceError: ONNX Runtime or onnx is not installed.
    """

    name = "onnxruntime-cpu"
    together = 40  # points in one network

    def __init__(self, *, threads: int = 1, batch: int = 1, min_rounds: int = 8, min_seconds: float = 0.05) -> None:
        from halp_profiler.backends.ort_report import NodeReport

        self._sessions = OrtSessions(threads=threads)
        self.threads, self.batch = threads, batch
        self._min_rounds, self._min_seconds = min_rounds, min_seconds
        self._watch = CpuWatch(threads)
        self._report = NodeReport(self._sessions)
        self._report.node_ms = self._reports_own_ms()
        self.block = self._find_block()
        self._touched = _UNKNOWN
        self._reference_ms = min(_quick(self._runs([])[:, -1]) for _ in range(3))
        self._slow_in_a_row = self._busy_in_a_row = 0

    def header(self) -> Header:
        return Header(
            device={**host_fingerprint(), "threads": self.threads},
            backend=self.name,
            backend_version=self._sessions.version,
            precision="fp32",
            layout="nchw" if self.block == 1 else f"nchw{self.block}c",
            batch=self.batch,
            source="measured",
            how={
                "method": "the runtime's report on each node of networks that hold dozens of kernels",
                "touched_mb": round(self._touched / 2**20, 1),
                "statistics": f"mean of the quicker half and quartiles of {self._min_rounds} or more runs",
                "unstable_over": UNSTABLE_OVER,
                "disturbed_over": DISTURBED_OVER,
                "state": self._watch.facts(),
                "report_ms_a_node": round(self._report.node_ms, 5),
                "steps": {family: s.to_json() for family, s in self._steps().items()},
                "numpy": np.__version__,
            },
        )

    def steps(self, kernel: Kernel) -> Steps:
        """The blocked layout pads channels to whole blocks; it is left where input channels are no multiple of 4
        (pools: of a block), and a convolution of less than a block reads the plain layout at any width. Where the
        width of groups varies, it is left unless they are whole blocks on either side."""
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
            "groups": Steps(align=b, block_in=b, block_out=b, align_out=b),
        }

    def refusal(self, kernel: Kernel) -> str | None:
        if kernel.layout_only and self.block == 1:
            return "the runtime has no layout of its own on this processor"
        return kernel.misfit

    def expect(self, ranges: Sequence[KernelRange]) -> None:
        """Takes note of how much a network touches in a run that consists of these kernels, once it is pruned: its
        weights and, for their memory is used again and again, the largest of its activations."""
        from halp_profiler.backends.onnx_scenes import activation_bytes, weight_bytes

        full = [(r.layers, Request(r.kernel, r.c_in[1], r.c_out[1])) for r in ranges]
        whole = sum(layers * weight_bytes(request) for layers, request in full)
        whole += max((activation_bytes(request, self.batch) for _, request in full), default=0)
        self._touched = min(_MOST, int(_KEPT * whole))

    def companions(self, ranges: Sequence[KernelRange]) -> list[KernelRange]:
        """The reorderings between the two layouts that networks with these kernels may need, and the kernels that
        stay in the layout of their input once more, in the plain one."""
        if self.block == 1:
            return []
        found = []
        for r in ranges:
            k = r.kernel
            if len(k.spatial) != 2 or k.op not in _IMAGES:
                continue
            for spatial, width in ((k.spatial, r.c_in), (output_spatial(k), r.c_out)):
                if k.plain and spatial == k.spatial:
                    continue  # the network's own input
                width = k.of_tensor(width[0]), k.of_tensor(width[1])
                found.append(KernelRange(Kernel("to_plain", spatial), width, width))
                if most := width[1] // 4 * 4:  # what is no multiple of 4 is read in the plain layout
                    some = min(most, max(self.block, -(-width[0] // 4) * 4)), most
                    found.append(KernelRange(Kernel("to_blocked", spatial), some, some))
            if k.op in _FOLLOW and not k.plain:
                found.append(KernelRange(replace(k, plain=True), r.c_in, r.c_out))
        return found

    def measure(self, requests: Sequence[Request]) -> list[Point]:
        """One point a request; what is disturbed or unsteady is measured again, and flagged if it stays so."""
        points: list[Point] = []
        for part in _parts(requests, max(self._touched, _UNKNOWN)):
            new = self._once(part, self._min_rounds)
            touched = max(self._touched, _touched(part, self.batch))
            for _ in range(0 if self._busy_in_a_row >= _PATIENCE else _TRIES - 1):
                shaky = [i for i, p in enumerate(new) if p.flags]
                if not shaky:
                    break
                for i, again in zip(
                    shaky, self._once([part[i] for i in shaky], 2 * self._min_rounds, touched), strict=True
                ):
                    new[i] = _better(new[i], again)
            points += new
        return points

    def _once(self, requests: Sequence[Request], rounds: int, touched: int | None = None) -> list[Point]:
        """The points as one network shows them, flagged where another process had the cores meanwhile."""
        self._watch.start()
        samples = self._runs(requests, rounds, touched)
        seen = self._watch.stop()
        reference_ms = _quick(samples[:, -1])
        self._busy_in_a_row = self._busy_in_a_row + 1 if seen else 0
        slow = reference_ms > DISTURBED_OVER * self._reference_ms
        self._slow_in_a_row = self._slow_in_a_row + 1 if slow else 0
        flags = (*seen, "disturbed") if slow and self._slow_in_a_row < _PATIENCE else seen
        samples = samples * (self._reference_ms / reference_ms)
        points = [_point(r, samples[:, i]) for i, r in enumerate(requests)]
        return [replace(p, flags=(*p.flags, *flags)) if flags else p for p in points]

    def _runs(self, requests: Sequence[Request], rounds: int | None = None, touched: int | None = None) -> np.ndarray:
        """Latencies in ms, shape (rounds, requests + 1), the reference last."""
        from halp_profiler.backends import onnx_scenes

        everything = [*requests, _REFERENCE]
        model = onnx_scenes.build(everything, self.batch, touched=touched or self._touched)
        try:
            return self._report.run(
                model, everything, min_rounds=rounds or self._min_rounds, min_seconds=self._min_seconds
            )
        except self._sessions.failures() as e:
            if len(requests) > 1:  # find the one that does not run, by name
                return np.concatenate([self._alone(r) for r in requests] + [self._runs([], rounds)], axis=1)
            asked = requests[0] if requests else _REFERENCE
            raise DeviceError(
                f"ONNX Runtime cannot run {asked.kernel.key} with {asked.c_in} channels in and {asked.c_out} out",
                str(e).splitlines()[0][:200],
                "Report this kernel, or leave it out of the sweep",
            ) from e

    def _alone(self, request: Request) -> np.ndarray:
        from halp_profiler.backends import onnx_scenes

        self._runs([request], 1)  # raises for the one that cannot run
        model = onnx_scenes.build([request], self.batch, touched=self._touched)
        return self._report.run(model, [request], min_rounds=self._min_rounds, min_seconds=0.0)[: self._min_rounds]

    def _reports_own_ms(self) -> float:
        """What reporting adds to a node: the reported sum less what the same network takes unreported, a node."""
        from halp_profiler.backends import onnx_scenes

        requests = [Request(_TINY, 16, 16)] * _NODES
        model = onnx_scenes.build(requests, 1)
        shapes = onnx_scenes.shapes_of(model)
        call = self._sessions.bound(model, shapes, optimise=True)
        found = []
        for _ in range(3):
            reported, nodes = self._report.whole(model, min_rounds=40)
            whole = time_interleaved({"": call}, min_seconds=0.02, min_rounds=40)[""].median_ms
            found.append((reported - whole) / nodes)
        return max(0.0, float(np.median(found)))

    def _find_block(self) -> int:
        """Channels in a block of the runtime's own layout; 1 where it has none."""
        from halp_profiler.backends.onnx_kernels import Drawing

        d = Drawing()
        x = d.input("x", (1, 1, 8, 8))
        d.output(d.node("Conv", [x, d.weight((1, 1, 1, 1))], kernel_shape=[1, 1]))
        optimised = self._sessions.optimised(d.model()).graph
        reordered = any(node.op_type == "ReorderOutput" for node in optimised.node)
        return max((w.dims[0] for w in optimised.initializer if len(w.dims) == 4), default=1) if reordered else 1


def _touched(requests: Sequence[Request], batch: int) -> int:
    """Bytes that a network of these scenes touches in a run; a smaller one has to touch as many."""
    from halp_profiler.backends.onnx_scenes import activation_bytes, weight_bytes

    return min(_MOST, sum(weight_bytes(r) + activation_bytes(r, batch) for r in requests))


def _parts(requests: Sequence[Request], most_bytes: int) -> list[list[Request]]:
    """The requests in parts that hold no more than so many bytes together."""
    from halp_profiler.backends.onnx_scenes import weight_bytes

    parts: list[list[Request]] = []
    held = 0
    for request in requests:
        size = weight_bytes(request)
        if not parts or held + size > most_bytes:
            parts.append([])
            held = 0
        parts[-1].append(request)
        held += size
    return parts


def _better(old: Point, new: Point) -> Point:
    """Whatever disturbs a kernel makes it slower: of two readings the quicker one stands, if it is no shakier."""
    if not new.flags:
        return new
    return new if new.median_ms < old.median_ms and len(new.flags) <= len(old.flags) else old


def _point(request: Request, samples_ms: np.ndarray) -> Point:
    """What one network showed of one kernel.

    A run in which the kernel was interrupted, or lost its data to another process, is longer; none is
    shorter than it should be. So what stands is the mean of the quicker half: in quiet it is within a percent of the
    median, and in noise it is nearer to what quiet would have shown. A mean, because the report has whole microseconds.
    """
    p25, p75 = np.percentile(samples_ms, (25, 75)).tolist()
    ms = _quick(samples_ms)
    flags = ("unstable",) if p75 - p25 > max(UNSTABLE_OVER * ms, _FINE_MS) else ()
    return Point(request.kernel, request.c_in, request.c_out, ms, min(p25, ms), max(p75, ms), len(samples_ms), flags)


def _quick(samples_ms: np.ndarray) -> float:
    """The mean of the quicker half."""
    return float(samples_ms[samples_ms <= np.median(samples_ms)].mean())


_FOLLOW = frozenset({"add", "activation", "batch_norm", "cat"})
_IMAGES = _FOLLOW | {"conv", "max_pool", "avg_pool", "global_pool", "mul", "interpolate"}
_TINY = Kernel("activation", (16,), fused=("sigmoid",))
_REFERENCE = Request(Kernel("conv", (16, 16), (3, 3), (1, 1), (1, 1)), 128, 128)
