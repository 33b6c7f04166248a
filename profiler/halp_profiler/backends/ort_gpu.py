"""ONNX Runtime on an NVIDIA GPU, through its CUDA or its TensorRT provider, with inputs and outputs bound there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halp_profiler.backends.base import Request, Settings
from halp_profiler.backends.ort_session import OrtSessions
from halp_profiler.backends.rounds import Call, Prepared, Rounds, Watch, runs_for
from halp_profiler.devices import Device
from halp_profiler.errors import DeviceError, UsageError
from halp_profiler.kernel import SPATIAL_OPS, Kernel
from halp_profiler.nvml import GpuWatch
from halp_profiler.records import Header, Point
from halp_profiler.steps import Steps
from halp_profiler.timing import time_interleaved

PROVIDERS = {"onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-tensorrt": "TensorrtExecutionProvider"}
_PRECISIONS = {"onnxruntime-cuda": ("fp32", "tf32", "fp16"), "onnxruntime-tensorrt": ("fp32", "tf32", "fp16", "bf16")}
_CALL_MS = 0.5
_MAX_RUNS = 17
_REFERENCE = Request(Kernel("conv", (8, 8), (3, 3), (1, 1), (1, 1)), 64, 64)


class OrtGpu:
    """Times kernels in one of ONNX Runtime's providers for NVIDIA GPUs.

    A network of n scenes (``onnx_scenes``: what writes the input, the kernel, a reader that costs nothing) less
    one of a single scene, over n - 1, is a kernel and its source. Sources are timed alone in the same way and
    subtracted. Every scene has inputs of its own, so that no runtime can merge the kernels of several. A call
    returns when the GPU is done.

    Args:
        name: one of ``PROVIDERS``.
        device: an attached GPU.
        settings: how kernels run.
        min_rounds, min_seconds: per call, see ``time_interleaved``.
        sessions, watch: in place of those for the GPU, for tests.

    Raises:
        DeviceError: ONNX Runtime, onnx or the provider is missing, or the provider falls back to another.
        UsageError: the provider has no such precision, layout or state of the cache.
    """

    together = 4

    def __init__(
        self,
        name: str,
        device: Device,
        settings: Settings,
        *,
        min_rounds: int = 15,
        min_seconds: float = 0.01,
        sessions: OrtSessions | None = None,
        watch: Watch | None = None,
    ) -> None:
        _check(name, settings)
        self.name, self.device, self.settings = name, device, settings
        watch = watch or GpuWatch(str(dict(device.details).get("uuid")))
        index = int(device.name.partition(":")[2] or 0)
        self._sessions = sessions or OrtSessions(
            PROVIDERS[name], provider_options(name, settings.precision, index), memory="cuda", device_id=index
        )
        self._sources_ms: dict[tuple[int, ...], float] = {}
        reference = self._scenes(_REFERENCE, 4)
        if isinstance(watch, GpuWatch):
            watch.own()
        self._rounds = Rounds(reference, min_rounds=min_rounds, min_seconds=min_seconds, watch=watch)

    def header(self) -> Header:
        s = self.settings
        return Header(
            device={"name": self.device.label, "kind": "cuda", **dict(self.device.details)}, backend=self.name,
            backend_version=self._sessions.version, precision=s.precision, layout="nchw", batch=s.batch,
            source="measured",
            how={
                "method": "n kernels with their sources less one, over n - 1, less the sources",
                **self._rounds.how(),
                "l2": s.l2,
                "steps": {
                    family: Steps.of_tensor_cores(self.settings.precision, family).to_json()
                    for family in ("conv", "conv_transpose", "rows")
                },
            },
        )  # fmt: skip

    def steps(self, kernel: Kernel) -> Steps:
        """See ``Steps.of_tensor_cores``."""
        return Steps.of_tensor_cores(self.settings.precision, kernel.family)

    def refusal(self, kernel: Kernel) -> str | None:
        return kernel.misfit or ("this provider has no layout of its own" if kernel.layout_only else None)

    def measure(self, requests: Sequence[Request]) -> list[Point]:
        """One point a request; see ``Rounds`` for what is measured again and flagged."""
        return self._rounds.points(requests, [self._prepare(r) for r in requests])

    def _prepare(self, request: Request) -> Prepared:
        kernel = request.kernel
        try:
            one = self._scenes(request, 1)
            runs = max(3, runs_for(one, _CALL_MS, _MAX_RUNS))
            return Prepared(self._scenes(request, runs), runs, one=one, each_ms=self._around_ms(request))
        except self._sessions.failures() as e:
            raise DeviceError(
                f"{self.name} cannot run {kernel.key} with {request.c_in} channels in and {request.c_out} out",
                str(e).splitlines()[0][:200],
                "Leave this kernel out of the sweep",
            ) from e

    def _around_ms(self, request: Request) -> float:
        """What stands around a kernel in each of its scenes: the sources of its input and of its residual."""
        from halp_profiler.backends.onnx_kernels import input_shape, output_shape

        kernel, batch = request.kernel, self.settings.batch
        read, made = input_shape(kernel, request.c_in, batch), output_shape(kernel, request.c_out, batch)
        if kernel.op not in SPATIAL_OPS:  # one pass over the input before it, one over the output behind it
            return (self._source_ms(read) + self._source_ms(made)) / 2
        own = 0.0 if kernel.plain and kernel.op.startswith("conv") else self._source_ms(read)
        own += self._source_ms(read) if kernel.op == "add" else 0.0
        return own + (self._source_ms(made) if "add" in kernel.fused else 0.0)

    def _source_ms(self, shape: tuple[int, ...]) -> float:
        if shape not in self._sources_ms:
            one = self._bound(_sources(shape, 1))
            runs = max(3, runs_for(one, _CALL_MS, _MAX_RUNS))
            calls: dict[str, Call] = {"one": one, "many": self._bound(_sources(shape, runs))}
            found = time_interleaved(calls, min_rounds=15, min_seconds=0.01)
            each = (found["many"].median_ms - found["one"].median_ms) / (runs - 1)
            self._sources_ms[shape] = max(0.0, each)
        return self._sources_ms[shape]

    def _scenes(self, request: Request, runs: int) -> Call:
        from halp_profiler.backends import onnx_scenes

        return self._bound(onnx_scenes.build([request] * runs, self.settings.batch))

    def _bound(self, model: Any) -> Call:
        from halp_profiler.backends import onnx_precision, onnx_scenes

        shapes = onnx_scenes.shapes_of(model)
        return self._sessions.bound(onnx_precision.converted(model, self.settings.precision), shapes, optimise=True)


def provider_options(name: str, precision: str, index: int) -> Mapping[str, str]:
    """The options of a provider, as ONNX Runtime's documentation of its CUDA and TensorRT providers names them."""
    if name == "onnxruntime-cuda":
        return {
            "device_id": str(index),
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "cudnn_conv_use_max_workspace": "1",
            "use_tf32": "1" if precision == "tf32" else "0",
        }
    return {
        "device_id": str(index),
        "trt_fp16_enable": "1" if precision == "fp16" else "0",
        "trt_bf16_enable": "1" if precision == "bf16" else "0",
        "trt_builder_optimization_level": "3",
        "trt_timing_cache_enable": "1",
    }


def _check(name: str, settings: Settings) -> None:
    for what, value, known in (
        ("precision", settings.precision, _PRECISIONS[name]), ("layout", settings.layout or "nchw", ("nchw",)),
        ("L2 state", settings.l2, ("warm",)),
    ):  # fmt: skip
        if value not in known:
            raise UsageError(
                f"{name} cannot run this", f"{what} is {value}", f"Use {' or '.join(known)}, or the backend torch"
            )


def _sources(shape: tuple[int, ...], runs: int) -> Any:
    """What writes a kernel's input, ``runs`` times: a scene without its kernel."""
    from halp_profiler.backends.onnx_kernels import Drawing

    d = Drawing()
    for i in range(runs):
        if len(shape) == 4:
            x = d.node("Conv", [d.input(f"x{i}", (shape[0], 1, *shape[2:])), d.weight((shape[1], 1, 1, 1))],
                       kernel_shape=[1, 1])  # fmt: skip
            d.output(d.node("Conv", [x, d.weight((16, shape[1], 1, 1))], kernel_shape=[1, 1], strides=shape[2:]))
        else:
            d.output(d.node("ReduceMean", [d.node("Relu", [d.input(f"x{i}", shape)])], keepdims=0))
    return d.model()
