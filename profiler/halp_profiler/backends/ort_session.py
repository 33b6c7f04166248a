"""ONNX Runtime, whatever the provider: sessions whose inputs and outputs are bound, so that a call moves no data."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from halp_profiler.errors import DeviceError

_LARGE = 1 << 16  # bytes of a weight from which on it is handed over apart from the model


class OrtSessions:
    """Makes sessions of one provider.

    Args:
        provider: as ONNX Runtime names it, e.g. ``CPUExecutionProvider``.
        options: of the provider.
        threads: intra-op threads.
        memory: where the tensors lie: ``cpu`` or ``cuda``.
        device_id: number of the GPU.

    Raises:
        DeviceError: ONNX Runtime or onnx is not installed, or lacks the provider.
    """

    def __init__(
        self,
        provider: str = "CPUExecutionProvider",
        options: Mapping[str, str] | None = None,
        *,
        threads: int = 1,
        memory: str = "cpu",
        device_id: int = 0,
    ) -> None:
        self.ort = _runtime(provider)
        self.provider, self.threads = provider, threads
        self._providers = [(provider, dict(options or {}))] if options else [provider]
        self._memory, self._device_id = memory, device_id
        self._folder = tempfile.TemporaryDirectory(prefix="halp-", ignore_cleanup_errors=True)
        self._rng = np.random.default_rng(0)
        self._weights: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # the runtime does not copy all of them

    @property
    def version(self) -> str:
        return str(self.ort.__version__)

    def optimised(self, model: Any) -> Any:
        """``model`` (an ``onnx.ModelProto``) as the runtime would execute it, with its own operators and layouts."""
        import onnx

        options = self._options("ORT_ENABLE_ALL")
        path = Path(self._folder.name) / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        self._session(model, options)
        return onnx.load(str(path))

    def bound(
        self, model: Any, shapes: Mapping[str, tuple[int, ...]], *, optimise: bool = False
    ) -> Callable[[], object]:
        """A call that runs ``model`` on noise, always in the same buffers, and returns when it is done.

        Args:
            model: an ``onnx.ModelProto``.
            shapes: input -> its shape.
            optimise: whether the runtime may change the model; False for what is optimised already.
        """
        return self.bind(
            self._session(model, self._options("ORT_ENABLE_ALL" if optimise else "ORT_DISABLE_ALL")), shapes
        )

    def reported(self, model: Any, prefix: str) -> Any:
        """A session that optimises ``model`` and notes what every node takes, in a file whose path has ``prefix``."""
        options = self._options("ORT_ENABLE_ALL")
        options.enable_profiling = True
        options.profile_file_prefix = prefix
        return self._session(model, options)

    def _session(self, model: Any, options: Any) -> Any:
        lean, weights, huge = _apart(model)
        if weights:
            values = {name: self.ort.OrtValue.ortvalue_from_numpy(w) for name, w in weights.items()}
            options.add_external_initializers(list(values), list(values.values()))
            for name in huge:
                options.add_initializer(name, values[name])  # this, too: else the runtime copies it once
        session = self.ort.InferenceSession(lean.SerializeToString(), options, providers=self._providers)
        self._weights[session] = weights
        if session.get_providers()[0] != self.provider:
            raise DeviceError(
                f"{self.provider} cannot be used", "ONNX Runtime fell back to another provider",
                "Check the driver and the CUDA, cuDNN and TensorRT libraries that this build of ONNX Runtime wants",
            )  # fmt: skip
        return session

    def bind(self, session: Any, shapes: Mapping[str, tuple[int, ...]]) -> Callable[[], object]:
        """A call that runs ``session`` on noise, always in the same buffers; ``shapes`` as in ``bound``."""
        binding = session.io_binding()
        for value in session.get_inputs():
            data = self._rng.standard_normal(shapes[value.name], dtype=np.float32)
            data = data.astype(np.float16) if value.type == "tensor(float16)" else data
            on_device = self.ort.OrtValue.ortvalue_from_numpy(data, self._memory, self._device_id)
            binding.bind_ortvalue_input(value.name, on_device)
        outputs = [value.name for value in session.get_outputs()]
        for name in outputs:
            binding.bind_output(name, self._memory, self._device_id)
        session.run_with_iobinding(binding)
        for name, made in zip(outputs, binding.get_outputs(), strict=True):
            binding.bind_ortvalue_output(name, made)  # the same buffer from now on
        return lambda: session.run_with_iobinding(binding)

    def failures(self) -> tuple[type[BaseException], ...]:
        """What ONNX Runtime raises where it cannot run a model."""
        state = self.ort.capi.onnxruntime_pybind11_state
        names = (
            "Fail", "InvalidArgument", "InvalidGraph", "NotImplemented", "RuntimeException", "NoSuchFile", "EPFail",
        )  # fmt: skip
        return tuple(getattr(state, n) for n in names if hasattr(state, n))

    def _options(self, level: str) -> Any:
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.graph_optimization_level = getattr(self.ort.GraphOptimizationLevel, level)
        return options


def _apart(model: Any) -> tuple[Any, dict[str, np.ndarray], list[str]]:
    """``model`` without its large weights, and those by name: to write and read them takes longer than to run it. Last,
    the names of those that the model only spoke of."""
    import onnx
    from onnx import numpy_helper

    from halp_profiler.backends.onnx_kernels import APART

    lean = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    lean.graph.name = model.graph.name
    for part in ("node", "input", "output", "value_info"):
        getattr(lean.graph, part).extend(getattr(model.graph, part))
    weights: dict[str, np.ndarray] = {}
    huge: list[str] = []
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:  # as ``Drawing.apart`` leaves them
            weights[tensor.name] = np.zeros(tensor.dims, np.float32)
            huge.append(tensor.name)
            lean.graph.initializer.append(tensor)
            continue
        if len(tensor.raw_data) < _LARGE or tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            lean.graph.initializer.append(tensor)
            continue
        weights[tensor.name] = numpy_helper.to_array(tensor)
        stub = lean.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        stub.data_location = onnx.TensorProto.EXTERNAL
        stub.external_data.add(key="location", value=APART)
    return lean, weights, huge


def _runtime(provider: str) -> Any:
    try:
        import onnx  # noqa: F401  (the builder needs it; better to say so at once)
        import onnxruntime
    except ImportError as e:
        wheel = "onnxruntime" if provider.startswith("CPU") else "onnxruntime-gpu"
        raise DeviceError(
            "Nothing can be timed with ONNX Runtime",
            f"the package {e.name} is not installed",
            f"Install it: pip install {wheel} onnx",
        ) from e
    if not hasattr(onnxruntime, "InferenceSession"):
        raise DeviceError(
            "Nothing can be timed with ONNX Runtime",
            "its installation is broken, as when both onnxruntime and onnxruntime-gpu are installed",
            "Uninstall both and install one of them",
        )
    if provider not in (here := onnxruntime.get_available_providers()):
        raise DeviceError(
            f"Nothing can be timed with ONNX Runtime's {provider}",
            f"this installation has only {', '.join(here)}",
            "Install onnxruntime-gpu in place of onnxruntime, on a machine with an NVIDIA driver",
        )
    return onnxruntime
