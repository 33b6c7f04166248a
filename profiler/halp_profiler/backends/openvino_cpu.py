"""OpenVINO on the CPU: kernels timed between neighbours that keep the runtime's own layout around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from halp_profiler.backends.base import Request, Settings
from halp_profiler.backends.rounds import Call, Prepared, Rounds, runs_for
from halp_profiler.devices import Device, host_fingerprint, vector_lanes
from halp_profiler.errors import DeviceError, UsageError
from halp_profiler.kernel import Kernel
from halp_profiler.records import Header, Point
from halp_profiler.steps import Steps
from halp_profiler.timing import time_interleaved
from halp_profiler.watch import CpuWatch

_CALL_MS = 0.5
_MAX_RUNS = 17
_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_REFERENCE = Request(Kernel("conv", (8, 8), (3, 3), (1, 1), (1, 1)), 64, 64)


class OpenVino:
    """Times kernels in OpenVINO's CPU plugin.

    A network of n kernels side by side less one of a single kernel, over n - 1, is a kernel and its neighbours;
    the neighbours are timed alone in the same way and subtracted.

    Args:
        device: the processor.
        settings: how kernels run; the layout is the plugin's own choice.
        min_rounds, min_seconds: per point, see ``time_interleaved``.

    Raises:
        DeviceError: OpenVINO is not installed or finds no CPU plugin.
        UsageError: the plugin has no such precision, or a layout was asked for.
    """

    name = "openvino"
    together = 6

    def __init__(self, device: Device, settings: Settings, *, min_rounds: int = 9, min_seconds: float = 0.004) -> None:
        if settings.precision not in _PRECISIONS:
            raise UsageError("OpenVINO cannot run this", f"precision is {settings.precision}", "Use fp32, bf16 or fp16")
        if settings.layout is not None:
            raise UsageError("OpenVINO cannot run this", "it chooses its layout by itself", "Leave --layout out")
        try:
            import openvino
        except ImportError as e:
            raise DeviceError(
                "Nothing can be timed with OpenVINO", f"the package {e.name} is not installed",
                "Install it: pip install openvino",
            ) from e  # fmt: skip
        self._core = openvino.Core()
        self._version = str(openvino.__version__)
        if "CPU" not in self._core.available_devices:
            raise DeviceError("Nothing can be timed with OpenVINO", "it finds no CPU plugin", "Reinstall openvino")
        self.settings = settings
        self._options = {
            "INFERENCE_NUM_THREADS": settings.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": _PRECISIONS[settings.precision],
        }
        self._neighbours_ms: dict[tuple[Any, ...], float] = {}
        watch = CpuWatch(settings.threads)
        self._rounds = Rounds(
            self._bound(self._network(_REFERENCE, 8)), min_rounds=min_rounds, min_seconds=min_seconds, watch=watch
        )

    def header(self) -> Header:
        s = self.settings
        return Header(
            device={**host_fingerprint(), "threads": s.threads}, backend=self.name, backend_version=self._version,
            precision=s.precision, layout="own", batch=s.batch, source="measured",
            how={
                "method": "n kernels side by side less one, over n - 1, less the neighbours that keep the layout",
                **self._rounds.how(),
                "steps": {"conv": Steps(block_out=vector_lanes()).to_json()},
            },
        )  # fmt: skip

    def steps(self, kernel: Kernel) -> Steps:
        """Dense convolutions make whole vectors of output channels; other edges the sweep finds itself."""
        return Steps(block_out=vector_lanes()) if kernel.family == "conv" else Steps()

    def refusal(self, kernel: Kernel) -> str | None:
        from halp_profiler.backends import openvino_kernels

        return openvino_kernels.refusal(kernel)

    def measure(self, requests: Sequence[Request]) -> list[Point]:
        """One point a request; see ``Rounds`` for what is measured again and flagged."""
        return self._rounds.points(requests, [self._prepare(r) for r in requests])

    def _prepare(self, request: Request) -> Prepared:
        kernel = request.kernel
        try:
            one = self._bound(self._network(request, 1))
            runs = max(2, runs_for(one, _CALL_MS, _MAX_RUNS))
            many = self._bound(self._network(request, runs))
            return Prepared(many, runs, one=one, each_ms=self._around_ms(kernel, request.c_out))
        except RuntimeError as e:
            raise DeviceError(
                f"OpenVINO cannot run {kernel.key} with {request.c_in} channels in and {request.c_out} out",
                next((line for line in reversed(str(e).splitlines()) if line.strip()), type(e).__name__)[:200],
                "Leave this kernel out of the sweep",
            ) from e

    def _around_ms(self, kernel: Kernel, c_out: int) -> float:
        """What a kernel's neighbours cost in one run."""
        from halp_profiler.backends import openvino_kernels as kernels

        if not kernels.images(kernel) or kernel.op in kernels.OTHER_SHAPE:
            return 0.0
        batch = self.settings.batch
        key = (kernels.made_shape(kernel, c_out, batch), "add" in kernel.fused)
        if key not in self._neighbours_ms:
            one = self._bound(kernels.surroundings(kernel, c_out, batch, 1))
            runs = max(3, runs_for(one, _CALL_MS, _MAX_RUNS))
            calls: dict[str, Call] = {
                "one": one, "many": self._bound(kernels.surroundings(kernel, c_out, batch, runs))
            }  # fmt: skip
            found = time_interleaved(calls, min_rounds=15, min_seconds=0.01)
            self._neighbours_ms[key] = (found["many"].median_ms - found["one"].median_ms) / (runs - 1)
        return self._neighbours_ms[key]

    def _network(self, request: Request, runs: int) -> Any:
        from halp_profiler.backends import openvino_kernels

        return openvino_kernels.in_network(request.kernel, request.c_in, request.c_out, self.settings.batch, runs)

    def _bound(self, model: Any) -> Call:
        """A call that infers ``model`` in the same buffers every time."""
        import numpy as np

        compiled = self._core.compile_model(model, "CPU", self._options)
        request = compiled.create_infer_request()
        rng = np.random.default_rng(0)
        for i, port in enumerate(compiled.inputs):
            request.get_input_tensor(i).data[:] = rng.standard_normal(port.shape, dtype=np.float32)
        run = request.infer
        run()
        return run
