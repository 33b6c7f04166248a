"""TensorRT 10 and 11: strongly typed networks, several builds a point, timed by TensorRT's report on its layers.

Names as in NVIDIA's TensorRT Python API reference and its guide "Migrating from TensorRT 10.x to 11.x": in 10 a
strongly typed network is asked for by a flag, in 11 every network is one and the flag is deprecated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from halp_profiler.backends.base import Request, Settings
from halp_profiler.backends.rounds import UNSTABLE_OVER, Watch
from halp_profiler.devices import Device
from halp_profiler.errors import DeviceError, UsageError
from halp_profiler.kernel import Kernel
from halp_profiler.nvml import GpuWatch
from halp_profiler.records import Header, Point
from halp_profiler.steps import Steps
from halp_profiler.timing import Timing

_TRIES = 3


class TensorRt:
    """Times kernels in TensorRT engines.

    Some kernels, each behind what writes its input (``onnx_scenes``), are built into one engine of a strongly
    typed network. TensorRT reports the time of every layer by the names of what it fused into it; a kernel's
    latency is the sum over the layers that hold its own nodes. TensorRT chooses its tactics by timing them, so
    another build may choose others: every engine is built several times, each time with a timing cache of its
    own, which later engines reuse, and the median over the builds is taken.

    Args:
        device: an attached GPU.
        settings: how kernels run; the layout is TensorRT's own choice.
        builds: engines a point.
        rounds: runs of each.
        tensorrt, allocate, watch: in place of the installed module, of the GPU's memory and of NVML, for tests.

    Raises:
        DeviceError: tensorrt or torch (which holds the GPU's memory) is missing, or the version is not known.
        UsageError: a layout or a cold cache was asked for.
    """

    name = "tensorrt"
    together = 8

    def __init__(
        self,
        device: Device,
        settings: Settings,
        *,
        builds: int = 3,
        rounds: int = 30,
        tensorrt: Any = None,
        allocate: Callable[[Sequence[int], str], tuple[Any, int]] | None = None,
        watch: Watch | None = None,
    ) -> None:
        if settings.layout is not None or settings.l2 != "warm":
            raise UsageError(
                "TensorRT cannot run this", "it chooses layouts by itself and finds its caches warm",
                "Leave --layout and --l2 out, or use the backend torch",
            )  # fmt: skip
        self._trt = tensorrt or _module()
        self.major = major_version(self._trt)
        self.device, self.settings, self.builds, self.rounds = device, settings, builds, rounds
        self._watch: Watch = watch or GpuWatch(str(dict(device.details).get("uuid")))
        self._allocate = allocate or _torch_memory(device)
        if isinstance(self._watch, GpuWatch):
            self._watch.own()
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)
        self._caches: list[bytes] = [b""] * builds

    def header(self) -> Header:
        s = self.settings
        return Header(
            device={"name": self.device.label, "kind": "cuda", **dict(self.device.details)}, backend=self.name,
            backend_version=str(self._trt.__version__), precision=s.precision, layout="own", batch=s.batch,
            source="measured",
            how={
                "method": "TensorRT's report on each layer, summed over the kernel's own nodes",
                "statistics": f"median over {self.builds} builds of the median of {self.rounds} runs",
                "unstable_over": UNSTABLE_OVER, "state": self._watch.facts(), "l2": s.l2, "strongly_typed": True,
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
        return kernel.misfit or ("TensorRT reorders tensors within its layers" if kernel.layout_only else None)

    def measure(self, requests: Sequence[Request]) -> list[Point]:
        """One point a request; measured again where the GPU was throttled or busy, and flagged if it stays so."""
        engines = [self._engine(requests, build) for build in range(self.builds)]
        flags: tuple[str, ...] = ()
        samples: list[list[np.ndarray]] = []
        for _ in range(_TRIES):
            self._watch.start()
            samples = [self._timed(engine, len(requests)) for engine in engines]
            flags = self._watch.stop()
            if not flags:
                break
        points = [median_build(r, [s[i] for s in samples]) for i, r in enumerate(requests)]
        return [replace(p, flags=(*p.flags, *flags)) if flags else p for p in points]

    def _engine(self, requests: Sequence[Request], build: int) -> Any:
        from halp_profiler.backends import onnx_precision, onnx_scenes

        trt = self._trt
        model = onnx_precision.converted(onnx_scenes.build(requests, self.settings.batch), self.settings.precision)
        builder = trt.Builder(self._logger)
        network = builder.create_network(creation_flags(trt, self.major))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse(model.SerializeToString()):
            raise self._failed(requests, str(parser.get_error(0)) if parser.num_errors else "it does not parse")
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        (config.set_flag if self.settings.precision == "tf32" else config.clear_flag)(trt.BuilderFlag.TF32)
        cache = config.create_timing_cache(self._caches[build])
        config.set_timing_cache(cache, ignore_mismatch=False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise self._failed(requests, "TensorRT found no implementation of it")
        self._caches[build] = bytes(config.get_timing_cache().serialize())
        engine = trt.Runtime(self._logger).deserialize_cuda_engine(plan)
        if engine is None:
            raise self._failed(requests, "the engine that was built cannot be loaded")
        return engine

    def _timed(self, engine: Any, kernels: int) -> list[np.ndarray]:
        """Samples in ms of every kernel in one engine."""
        trt = self._trt
        context = engine.create_execution_context()
        tensors, addresses = [], []
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            tensor, address = self._allocate(tuple(engine.get_tensor_shape(name)), str(engine.get_tensor_dtype(name)))
            tensors.append(tensor)
            addresses.append(address)
            context.set_tensor_address(name, address)
        reports: list[list[tuple[str, float]]] = []

        class Report(trt.IProfiler):  # type: ignore[name-defined]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                reports[-1].append((layer_name, ms))

        report = Report()
        for i in range(self.rounds + 3):
            if i == 3:  # warm by now
                reports.clear()
                context.profiler = report
            reports.append([])
            if not context.execute_v2(addresses):
                raise DeviceError("TensorRT failed", "an engine stopped while it ran", "Look at its log")
        del tensors
        return [np.array([kernel_ms(layers, k) for layers in reports]) for k in range(kernels)]

    def _failed(self, requests: Sequence[Request], why: str) -> DeviceError:
        names = ", ".join(dict.fromkeys(r.kernel.key for r in requests))
        return DeviceError(f"TensorRT cannot run {names[:200]}", why[:200], "Leave this kernel out of the sweep")


def major_version(trt: Any) -> int:
    """10 or 11. Raises DeviceError for another version, whose interface is not known."""
    text = str(trt.__version__)
    major = int(text.split(".")[0]) if text.split(".")[0].isdigit() else 0
    if major not in (10, 11):
        raise DeviceError("TensorRT cannot be used", f"its version is {text}", "Install version 10 or 11")
    return major


def creation_flags(trt: Any, major: int) -> int:
    """Of ``create_network``: strongly typed, which 11 does by itself."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if major == 10 else 0


def kernel_ms(layers: Iterable[tuple[str, float]], kernel: int) -> float:
    """Time of all layers that hold a node of the kernel (``k3_...`` for number 3), in ms.

    TensorRT joins the names of what it fused by a plus sign, and of what it merged side by side by two bars; a layer
    that holds the nodes of several kernels is divided evenly among them.
    """
    total = 0.0
    for name, ms in layers:
        parts = [p for p in _words(name) if p[:1] in "skn" and p[1:].split("_")[0].isdigit()]
        mine = [p for p in parts if p.startswith(f"k{kernel}_")]
        others = {p.split("_")[0] for p in parts if p[:1] == "k"} - {f"k{kernel}"}
        if mine:
            total += ms / (1 + len(others))
    return total


def _words(name: str) -> list[str]:
    return "".join(c if c.isalnum() or c == "_" else " " for c in name).split()


def median_build(request: Request, samples: Sequence[np.ndarray]) -> Point:
    """The point of the build with the median latency; ``unstable`` where the builds' medians spread too far."""
    timings = sorted((Timing.of(s, UNSTABLE_OVER) for s in samples), key=lambda t: t.median_ms)
    middle = timings[len(timings) // 2]
    apart = timings[-1].median_ms - timings[0].median_ms > 2 * UNSTABLE_OVER * middle.median_ms
    flags = ("unstable",) if middle.unstable else (("builds_differ",) if apart else ())
    if middle.median_ms <= 0:
        raise DeviceError(
            f"TensorRT reports no time for {request.kernel.key}", "it was fused into what stands around it",
            "Leave this kernel out of the sweep",
        )  # fmt: skip
    total = sum(t.samples for t in timings)
    return Point(
        request.kernel, request.c_in, request.c_out, middle.median_ms, middle.p25_ms, middle.p75_ms, total, flags
    )


def _module() -> Any:
    try:
        import onnx  # noqa: F401  (networks are handed over in its format)
        import tensorrt
    except ImportError as e:
        raise DeviceError(
            "Nothing can be timed with TensorRT", f"the package {e.name} is not installed",
            "Install it: pip install tensorrt onnx",
        ) from e  # fmt: skip
    return tensorrt


def _torch_memory(device: Device) -> Callable[[Sequence[int], str], tuple[Any, int]]:
    try:
        import torch
    except ImportError as e:
        raise DeviceError(
            "Nothing can be timed with TensorRT", "the package torch, which holds the GPU's memory, is not installed",
            "Install it: pip install torch",
        ) from e  # fmt: skip
    if not torch.cuda.is_available():
        raise DeviceError(
            f"TensorRT cannot reach {device.name}", "torch finds no GPU or driver", "Install NVIDIA's driver"
        )
    torch.cuda.set_device(device.name)
    sizes = {"HALF": torch.float16, "BF16": torch.bfloat16, "FLOAT": torch.float32}

    def allocate(shape: Sequence[int], dtype: str) -> tuple[Any, int]:
        kind = next((t for name, t in sizes.items() if dtype.upper().endswith(name)), torch.float32)
        tensor = torch.randn(tuple(shape), device=device.name).to(kind)
        return tensor, tensor.data_ptr()

    return allocate
