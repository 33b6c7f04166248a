"""torch, eager or compiled, on the CPU; and on CUDA with cuDNN, timed by events or by replaying CUDA graphs."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from halp_profiler.backends.base import Request, Settings
from halp_profiler.backends.rounds import Call, Clock, Prepared, Rounds, Watch, runs_for
from halp_profiler.devices import Device, host_fingerprint, vector_lanes
from halp_profiler.errors import DeviceError, UsageError
from halp_profiler.kernel import Kernel
from halp_profiler.nvml import GpuWatch
from halp_profiler.records import Header, Point
from halp_profiler.steps import Steps
from halp_profiler.timing import time_interleaved
from halp_profiler.watch import CpuWatch

if TYPE_CHECKING:
    from halp_profiler.backends.torch_kernels import Built, Tensors

MODES = ("eager", "compiled", "cudagraph")
_CALL_MS = 0.25  # a call runs its kernel as often as fills about this, so that the call itself hardly counts
_MAX_RUNS = 48
_COMPILED_RUNS = 3  # every run is compiled on its own, which takes a second or more
_DTYPES = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_REFERENCE = Request(Kernel("conv", (8, 8), (3, 3), (1, 1), (1, 1)), 64, 64)
_DEFAULT_L2_MB = 96


class TorchRuns:
    """Times kernels in torch.

    ``eager`` runs the operation, the addition and the activation one after another, as an eager network does whose
    BatchNorm is folded; what Python and the dispatcher cost is part of it, on a GPU too where the host is the
    slower one. ``compiled`` lets Inductor make one graph of several runs with weights and inputs of their own, and
    takes the difference to one run, so that the call's guards are not charged to the kernel. ``cudagraph`` captures
    the eager runs once and replays them, which leaves the GPU's own time.

    On a GPU a sample is the time between two events (``CudaClock``). With the L2 cache warm, kernels run back to
    back and find their data as the run before left it; cold, each runs once after the cache was overwritten.

    Args:
        device: the processor or an attached GPU.
        settings: how kernels run.
        mode: one of ``MODES``.
        min_rounds, min_seconds: per point, see ``time_interleaved``.

    Raises:
        DeviceError: torch is not installed, cannot reach the GPU, or has no compiler.
        UsageError: the device has no such mode or precision.
    """

    def __init__(
        self,
        device: Device,
        settings: Settings,
        mode: str = "eager",
        *,
        min_rounds: int = 9,
        min_seconds: float = 0.004,
    ) -> None:
        self._gpu = device.kind == "cuda"
        self.device, self.settings, self.mode = device, settings, mode
        self.name = {"eager": "torch", "compiled": "torch-compiled", "cudagraph": "torch-cudagraph"}[mode]
        self.together = 2 if mode == "compiled" else 6
        _check(self.name, device, settings, mode)
        watch: Watch = CpuWatch(settings.threads)
        if self._gpu:  # before torch makes its context, so that this process can be told from others
            watch = gpu_watch = GpuWatch(str(dict(device.details).get("uuid")))
        self._torch = _torch(device)
        torch = self._torch
        self._where = device.name if self._gpu else "cpu"
        self.layout = settings.layout or ("nhwc" if self._gpu and settings.precision != "fp32" else "nchw")
        clock: Clock = time_interleaved
        with self._modes():
            if self._gpu:
                torch.zeros(1, device=self._where)
                gpu_watch.own()
                clock = _cuda_clock(torch, self._where, settings.l2)
            self.call_ms = self._empty_call_ms(clock)
            self._rounds = Rounds(
                self._prepare(_REFERENCE).many, min_rounds=min_rounds, min_seconds=min_seconds, watch=watch, clock=clock
            )

    def header(self) -> Header:
        torch, s = self._torch, self.settings
        how = {
            "method": _METHODS[self.mode],
            **self._rounds.how(),
            "empty_call_ms": round(self.call_ms, 5),
            "steps": {family: self.steps_of(family).to_json() for family in ("conv", "conv_transpose", "rows")},
            "python": platform.python_version(),
        }
        if self._gpu:
            device = {"name": self.device.label, "kind": "cuda", **dict(self.device.details)}
            how |= {"l2": s.l2, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
                    "clock": "events", "host": host_fingerprint()["name"]}  # fmt: skip
        else:
            device = {**host_fingerprint(), "threads": s.threads}
            how |= {"mkldnn": bool(torch.backends.mkldnn.is_available())}
        return Header(
            device=device, backend=self.name, backend_version=str(torch.__version__), precision=s.precision,
            layout=self.layout, batch=s.batch, source="measured", how=how,
        )  # fmt: skip

    def steps(self, kernel: Kernel) -> Steps:
        """Tensor cores want multiples of 8 half-precision (of 4 tf32) channels; oneDNN makes whole vectors of output
        channels. Other edges the sweep finds itself."""
        return self.steps_of(kernel.family)

    def steps_of(self, family: str) -> Steps:
        if self._gpu:
            return Steps.of_tensor_cores(self.settings.precision, family)
        return Steps(block_out=vector_lanes()) if family == "conv" else Steps()

    def refusal(self, kernel: Kernel) -> str | None:
        from halp_profiler.backends import torch_kernels

        return torch_kernels.refusal(kernel)

    def measure(self, requests: Sequence[Request]) -> list[Point]:
        """One point a request; see ``Rounds`` for what is measured again and flagged."""
        with self._modes():
            return self._rounds.points(requests, [self._prepare(r) for r in requests])

    def _prepare(self, request: Request) -> Prepared:
        kernel, torch = request.kernel, self._torch
        try:
            if self.mode == "compiled":
                return self._compiled(request)
            built = self._built(request)
            self._run(lambda: built())
            if self._gpu and self.settings.l2 == "cold":
                runs = 1
            else:
                runs = runs_for(lambda: self._run(lambda: built()), _CALL_MS, _MAX_RUNS)
            many = _repeated(built, runs)
            if self.mode == "cudagraph":
                many = _captured(torch, self._where, many)
            return Prepared(many, runs, call_ms=self.call_ms)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as e:
            raise DeviceError(
                f"torch cannot run {kernel.key} with {request.c_in} channels in and {request.c_out} out",
                (str(e).strip() or type(e).__name__).splitlines()[0][:200],
                "Leave this kernel out of the sweep, or use a smaller batch",
            ) from e

    def _built(self, request: Request) -> Built:
        from halp_profiler.backends import torch_kernels

        s = self.settings
        dtype = getattr(self._torch, _DTYPES[s.precision])
        place = torch_kernels.placing(self._where, dtype, self.layout == "nhwc")
        return torch_kernels.build(request.kernel, request.c_in, request.c_out, s.batch, place=place)

    def _compiled(self, request: Request) -> Prepared:
        """Several runs in one graph, each with its own tensors: equal ones would be computed once."""
        calls = []
        for runs in (_COMPILED_RUNS, 1):
            built = [self._built(request) for _ in range(runs)]
            inputs, weights = [b.inputs for b in built], [b.weights for b in built]
            function = _fresh(built[0].function)
            compiled = self._torch.compile(function, dynamic=False, fullgraph=True)
            call = _bound(compiled, inputs, weights)
            self._run(call)
            calls.append(call)
        return Prepared(calls[0], _COMPILED_RUNS, one=calls[1])

    def _run(self, call: Call) -> None:
        call()
        if self._gpu:
            self._torch.cuda.synchronize(self._where)

    def _empty_call_ms(self, clock: Clock) -> float:
        call: Call = _repeated(lambda: None, 1)
        if self.mode == "cudagraph":
            nothing = self._torch.zeros(1, device=self._where)
            call = _captured(self._torch, self._where, lambda: nothing.add_(1))
        found = clock({"": call}, min_rounds=50, min_seconds=0.02, warmup=3, unstable_over=1.0)[""].p25_ms
        # Replaying a graph cannot be timed without a node; the smallest kernel stands for it, less its own 2 us.
        return max(0.0, found - 0.002) if self.mode == "cudagraph" else found

    @contextmanager
    def _modes(self) -> Iterator[None]:
        """torch's process-wide switches as this backend wants them, and back."""
        torch, s = self._torch, self.settings
        threads = torch.get_num_threads()
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self._gpu:
                stack.enter_context(torch.cuda.device(self._where))
                tf32 = s.precision == "tf32"
                stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32))
                stack.enter_context(_matmul_tf32(torch, tf32))
            else:
                torch.set_num_threads(s.threads)
            try:
                yield
            finally:
                torch.set_num_threads(threads)


_METHODS = {
    "eager": "operation, addition and activation called in turn, repeated in one sample",
    "compiled": "difference between a graph of several runs and of one, compiled by Inductor",
    "cudagraph": "operation, addition and activation captured in a CUDA graph, repeated in one replay",
}


def _check(name: str, device: Device, settings: Settings, mode: str) -> None:
    if mode == "cudagraph" and device.kind != "cuda":
        raise UsageError(f"{name} cannot run on {device.label}", "CUDA graphs need a GPU", "Use torch instead")
    if settings.precision == "tf32" and device.kind != "cuda":
        raise UsageError(
            f"{device.label} cannot be profiled in tf32", "only NVIDIA's tensor cores have it", "Use fp32 or bf16"
        )


def _torch(device: Device) -> Any:
    try:
        import torch
    except ImportError as e:
        raise DeviceError(
            "Nothing can be timed with torch", f"the package {e.name} is not installed", "Install it: pip install torch"
        ) from e
    if device.kind == "cuda" and not torch.cuda.is_available():
        why = "this build of torch has no CUDA" if torch.version.cuda is None else "torch finds no GPU or driver"
        raise DeviceError(f"torch cannot reach {device.name}", why, "Install torch with CUDA, and NVIDIA's driver")
    return torch


def _fresh(function: Callable[[Tensors, Tensors], Any]) -> Callable[..., Any]:
    """A function of its own: torch keeps what it compiled per code object, and gives up on one after a few."""
    scope: dict[str, Any] = {"function": function}
    exec("def runs(inputs, weights):\n    return [function(x, w) for x, w in zip(inputs, weights)]", scope)
    return scope["runs"]


def _bound(function: Callable[..., Any], inputs: list[Tensors], weights: list[Tensors]) -> Call:
    return lambda: function(inputs, weights)


def _repeated(call: Call, runs: int) -> Call:
    def many() -> None:
        for _ in range(runs):
            call()

    return many


def _captured(torch: Any, where: str, call: Call) -> Call:
    """``call`` as a CUDA graph; warmed up on a side stream first, as capturing demands."""
    side = torch.cuda.Stream(where)
    side.wait_stream(torch.cuda.current_stream(where))
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream(where).wait_stream(side)
    torch.cuda.synchronize(where)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


class _TorchEvents:
    def __init__(self, torch: Any) -> None:
        self._begin, self._end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def between_ms(self, call: Call) -> float:
        self._begin.record()
        call()
        self._end.record()
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end))


def _cuda_clock(torch: Any, where: str, l2: str) -> Clock:
    from halp_profiler.backends.cuda_clock import CudaClock

    events = _TorchEvents(torch)
    if l2 == "warm":
        return CudaClock(events)
    size = getattr(torch.cuda.get_device_properties(where), "L2_cache_size", 0) or _DEFAULT_L2_MB << 20
    buffer = torch.empty(2 * size, dtype=torch.int8, device=where)
    return CudaClock(events, flush=buffer.zero_)


@contextmanager
def _matmul_tf32(torch: Any, allowed: bool) -> Iterator[None]:
    """Matrix products of fp32 data in tf32 (``high``) or in full (``highest``)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
