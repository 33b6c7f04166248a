"""ONNX Runtime: is it there, and sessions made for honest timing.

ONNX Runtime comes in several wheels that all provide the module ``onnxruntime`` and break each other when
more than one is installed, so it is not a base dependency and is imported only here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from halp_iee.errors import ArtifactError, DeviceError, UsageError
from halp_iee.measure.engine import Feeds, Spec

if TYPE_CHECKING:
    import onnxruntime

WHEELS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-training",
)

_CPU = "CPUExecutionProvider"

# ONNX Runtime's names for element types -> numpy's. bfloat16 and the 8-bit floats have no numpy type.
_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}


def installed_wheels() -> tuple[str, ...]:
    """The installed distributions that provide ``onnxruntime``."""
    found = []
    for name in WHEELS:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return tuple(found)


def require_onnxruntime() -> Any:
    """The ``onnxruntime`` module.

    Raises:
        DeviceError: no wheel, several wheels, or one that cannot be imported.
    """
    wheels = installed_wheels()
    if len(wheels) > 1:
        raise DeviceError(
            "ONNX Runtime cannot be used",
            f"the wheels {' and '.join(wheels)} are both installed and overwrite each other's files",
            f"Keep one: pip uninstall -y {' '.join(wheels)} && pip install {wheels[0]}",
        )
    try:
        return importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        raise DeviceError(
            "ONNX Runtime is needed here",
            f"it is not installed ({error})",
            "pip install 'halp-iee[cpu]', or 'halp-iee[gpu]' on a machine with an NVIDIA GPU",
        ) from error
    except ImportError as error:
        raise DeviceError(
            "ONNX Runtime cannot be used",
            f"importing it failed: {_first_line(error)}",
            "Reinstall it: pip install --force-reinstall 'halp-iee[cpu]'",
        ) from error


def session(
    model: str | Path | bytes, *, threads: int = 1, provider: str = _CPU, device: int = 0
) -> onnxruntime.InferenceSession:
    """A session with all graph optimisations, operators one after another, on ``threads`` threads.

    Args:
        model: an ONNX file, or its bytes.
        threads: threads inside one operator. One is the default: it repeats within a percent on a
            shared machine, two do not.
        provider: ONNX Runtime's name for the device. Asking for one that is not there is an error
            rather than a quiet fall-back to the CPU.
        device: number of the GPU.

    Raises:
        ArtifactError: no such file, or not a model that ONNX Runtime accepts.
        DeviceError: ONNX Runtime or the provider is not there.
        UsageError: ``threads`` is not positive.
    """
    if threads < 1:
        raise UsageError("Cannot start ONNX Runtime", f"threads is {threads}", "Give a whole number from 1 up")
    ort = require_onnxruntime()
    available = ort.get_available_providers()
    if provider not in available:
        raise DeviceError(
            f"ONNX Runtime has no {provider}",
            f"this installation offers {', '.join(available)}",
            "Install the wheel for that device, e.g. pip install 'halp-iee[gpu]'",
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # only what is fatal; everything else arrives as an exception
    source: str | bytes
    if isinstance(model, bytes):
        source = model
        label = "the ONNX model"
    else:
        path = Path(model)
        if not path.is_file():
            raise ArtifactError(f"Cannot open {path}", "there is no such file", "Give the path of an ONNX file")
        label, source = str(path), str(path)
    try:
        chosen = provider if provider == _CPU else (provider, {"device_id": device})
        return ort.InferenceSession(source, sess_options=options, providers=[chosen])
    except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
        raise ArtifactError(
            f"ONNX Runtime does not accept {label}",
            _first_line(error),
            "Check that it is a complete ONNX file, and that its opset is not newer than this ONNX Runtime",
        ) from error


@dataclass(frozen=True)
class OnnxEngine:
    """An ONNX model in ONNX Runtime."""

    session: onnxruntime.InferenceSession
    runtime: str
    device: str = "cpu"

    @classmethod
    def load(cls, model: str | Path | bytes, *, threads: int = 1, provider: str = _CPU, device: int = 0) -> OnnxEngine:
        """As ``session``, which see for what it raises."""
        found = session(model, threads=threads, provider=provider, device=device)
        return cls(found, " ".join(describe().values()), "cpu" if provider == _CPU else f"cuda:{device}")

    @property
    def inputs(self) -> tuple[Spec, ...]:
        return tuple(map(_spec, self.session.get_inputs()))

    @property
    def outputs(self) -> tuple[Spec, ...]:
        return tuple(map(_spec, self.session.get_outputs()))

    def run(self, feeds: Feeds) -> list[np.ndarray]:
        return [np.asarray(value) for value in self.session.run(None, feeds)]

    def prepare(self, feeds: Feeds) -> Callable[[], Any]:
        """On a GPU inputs and outputs stay there, so that what is timed is the network and not the bus."""
        if self.device != "cpu":
            return self._bound(feeds, "cuda", int(self.device.partition(":")[2]))
        run = self.session.run
        return lambda: run(None, feeds)

    def _bound(self, feeds: Feeds, kind: str, index: int) -> Callable[[], Any]:
        ort, binding = require_onnxruntime(), self.session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, kind, index))
        for spec in self.outputs:
            binding.bind_output(spec.name, kind, index)

        def once() -> Any:
            self.session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return binding

        return once


def _spec(arg: Any) -> Spec:
    dtype = _DTYPES.get(arg.type)
    shape = tuple(size if isinstance(size, int) and size >= 0 else None for size in arg.shape)
    return Spec(arg.name, shape, None if dtype is None else np.dtype(dtype), str(arg.type))


def describe() -> dict[str, str]:
    """Name and version of the installed ONNX Runtime, for the environment of a report."""
    ort = require_onnxruntime()
    return {"runtime": "ONNX Runtime", "runtime_version": str(ort.__version__)}


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
