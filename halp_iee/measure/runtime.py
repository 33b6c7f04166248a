"""ONNX Runtime: is it there, sessions made for honest timing, and inputs that fit a model.

ONNX Runtime comes in several wheels that all provide the module ``onnxruntime`` and break each other when
more than one is installed, so it is not a base dependency and is imported only here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from halp_iee.errors import ArtifactError, DeviceError, UsageError

if TYPE_CHECKING:
    import onnxruntime

Feeds = dict[str, np.ndarray]

WHEELS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-training",
)

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
    model: str | Path | bytes, *, threads: int = 1, provider: str = "CPUExecutionProvider"
) -> onnxruntime.InferenceSession:
    """A session with all graph optimisations, operators one after another, on ``threads`` threads.

    Args:
        model: an ONNX file, or its bytes.
        threads: threads inside one operator. One is the default: it repeats within a percent on a
            shared machine, two do not.
        provider: ONNX Runtime's name for the device. Asking for one that is not there is an error
            rather than a quiet fall-back to the CPU.

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
        return ort.InferenceSession(source, sess_options=options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
        raise ArtifactError(
            f"ONNX Runtime does not accept {label}",
            _first_line(error),
            "Check that it is a complete ONNX file, and that its opset is not newer than this ONNX Runtime",
        ) from error


def feeds_for(
    sess: onnxruntime.InferenceSession, *, batch: int | None = None, seed: int = 0, label: str = "the model"
) -> Feeds:
    """Random inputs of the shapes and types that the model declares, the same for the same seed.

    A first axis of open size takes ``batch`` (1 when not given); floating-point values are standard
    normal; integers are 0 or 1, which every embedding table and every mask accepts.

    Raises:
        UsageError: an axis other than the first is open, a type has no numpy counterpart, or the model
            was exported for another batch.
    """
    if batch is not None and batch < 1:
        raise UsageError("Cannot make inputs", f"batch is {batch}", "Give a whole number from 1 up")
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for spec in sess.get_inputs():
        shape = []
        for axis, size in enumerate(spec.shape):
            if isinstance(size, int):
                if axis == 0 and batch is not None and size != batch:
                    raise UsageError(
                        f"Cannot run {label} with batch {batch}",
                        f"its input {spec.name!r} is fixed to {tuple(spec.shape)}",
                        f"Use batch {size}, or export it with a dynamic batch",
                    )
                shape.append(size)
            elif axis == 0:
                shape.append(batch or 1)
            else:
                raise UsageError(
                    f"Cannot make inputs for {label}",
                    f"axis {axis} of its input {spec.name!r} has no fixed size",
                    "Give the inputs as arrays",
                )
        dtype = _DTYPES.get(spec.type)
        if dtype is None:
            raise UsageError(
                f"Cannot make inputs for {label}",
                f"its input {spec.name!r} is of type {spec.type}",
                "Give the inputs as arrays",
            )
        if np.issubdtype(dtype, np.floating):
            feeds[spec.name] = rng.standard_normal(shape).astype(dtype)
        else:
            feeds[spec.name] = rng.integers(0, 2, size=shape).astype(dtype)
    return feeds


def bind(
    sess: onnxruntime.InferenceSession,
    inputs: np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray],
    *,
    label: str = "the model",
) -> Feeds:
    """Given arrays as feeds: one array, several in the model's order, or by name; types and shapes checked.

    Raises:
        UsageError: the number, a name or a shape does not fit the model.
    """
    specs = sess.get_inputs()
    names = [spec.name for spec in specs]
    if isinstance(inputs, Mapping):
        given = dict(inputs)
    else:
        arrays = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
        if len(arrays) != len(names):
            raise UsageError(
                f"The inputs do not fit {label}",
                f"{len(arrays)} given, it takes {len(names)}: {', '.join(names)}",
                "Give one array for each",
            )
        given = dict(zip(names, arrays, strict=True))
    if set(given) != set(names):
        raise UsageError(
            f"The inputs do not fit {label}",
            f"given {', '.join(sorted(given)) or 'nothing'}, it takes {', '.join(names)}",
            "Name the inputs as the model does",
        )
    feeds: Feeds = {}
    for spec in specs:
        array = np.ascontiguousarray(given[spec.name])
        fits = array.ndim == len(spec.shape) and all(
            not isinstance(want, int) or want == have for want, have in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            raise UsageError(
                f"The inputs do not fit {label}",
                f"input {spec.name!r} is {array.shape}, it takes {tuple(spec.shape)}",
                "Give arrays of that shape, or export with a dynamic batch",
            )
        dtype = _DTYPES.get(spec.type)
        feeds[spec.name] = array if dtype is None else array.astype(dtype, copy=False)
    return feeds


def fixed_batch(sess: onnxruntime.InferenceSession) -> int | None:
    """The batch that a model is fixed to: the first axis of its first input; None when that is open."""
    shape = sess.get_inputs()[0].shape if sess.get_inputs() else []
    return shape[0] if shape and isinstance(shape[0], int) else None


def describe() -> dict[str, str]:
    """Name and version of the installed ONNX Runtime, for the environment of a report."""
    ort = require_onnxruntime()
    return {"runtime": "ONNX Runtime", "runtime_version": str(ort.__version__)}


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
