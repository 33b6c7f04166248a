"""Networks in OpenVINO: ONNX files and its own IR. OpenVINO is an extra, imported only here and where IR is written."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from halp_iee.errors import ArtifactError, DeviceError, UsageError
from halp_iee.measure.engine import Feeds, Spec


def require_openvino() -> Any:
    """The ``openvino`` module.

    Raises:
        DeviceError: it is not installed or cannot be imported.
    """
    try:
        return importlib.import_module("openvino")
    except ModuleNotFoundError as error:
        raise DeviceError(
            "OpenVINO is needed here", f"it is not installed ({error})", "pip install 'halp-iee[openvino]'"
        ) from error
    except ImportError as error:
        raise DeviceError(
            "OpenVINO cannot be used", f"importing it failed: {first_line(error)}",
            "Reinstall it: pip install --force-reinstall 'halp-iee[openvino]'",
        ) from error  # fmt: skip


def first_line(error: BaseException) -> str:
    """What went wrong, without the source lines that OpenVINO puts around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '", "While "))]
    return (telling or lines or [type(error).__name__])[0][:300]


@dataclass(frozen=True)
class OpenVinoEngine:
    """A network compiled for the CPU."""

    compiled: Any
    runtime: str

    @classmethod
    def load(cls, file: str | Path, *, threads: int = 1) -> OpenVinoEngine:
        """Compile an ONNX file or an IR (``.xml``, its ``.bin`` beside it) for latency, in single precision.

        Left to itself OpenVINO computes in bfloat16 where the processor has it, which is another network than
        the one that was checked.

        Raises:
            ArtifactError: no such file, or not one that OpenVINO accepts.
            DeviceError: OpenVINO is not there.
            UsageError: ``threads`` is not positive.
        """
        if threads < 1:
            raise UsageError("Cannot start OpenVINO", f"threads is {threads}", "Give a whole number from 1 up")
        ov = require_openvino()
        if not Path(file).is_file():
            raise ArtifactError(f"Cannot open {file}", "there is no such file", "Give the path of a network")
        options = {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
        }  # fmt: skip
        try:
            compiled = ov.Core().compile_model(str(file), "CPU", options)
        except Exception as error:  # OpenVINO raises plain RuntimeErrors
            raise ArtifactError(
                f"OpenVINO does not accept {file}", first_line(error),
                "Check that the file is complete, and an IR's .bin beside its .xml",
            ) from error  # fmt: skip
        return cls(compiled, f"OpenVINO {str(ov.__version__).split('-')[0]}")

    @property
    def inputs(self) -> tuple[Spec, ...]:
        return tuple(_spec(port, f"input_{i}") for i, port in enumerate(self.compiled.inputs))

    @property
    def outputs(self) -> tuple[Spec, ...]:
        return tuple(_spec(port, f"output_{i}") for i, port in enumerate(self.compiled.outputs))

    def run(self, feeds: Feeds) -> list[np.ndarray]:
        found = self.compiled.create_infer_request().infer(self._by_index(feeds))
        return [np.array(found[port]) for port in self.compiled.outputs]

    def prepare(self, feeds: Feeds) -> Callable[[], Any]:
        request, given = self.compiled.create_infer_request(), self._by_index(feeds)
        return lambda: request.infer(given, share_inputs=True, share_outputs=True)

    def _by_index(self, feeds: Feeds) -> dict[int, np.ndarray]:
        return {i: feeds[spec.name] for i, spec in enumerate(self.inputs)}


def _spec(port: Any, otherwise: str) -> Spec:
    shape = tuple(None if axis.is_dynamic else int(axis.get_length()) for axis in port.get_partial_shape())
    kind = port.get_element_type()
    try:
        dtype = np.dtype(kind.to_dtype())
    except Exception:  # types that numpy does not know
        dtype = None
    names = port.get_names()
    return Spec(port.get_any_name() if names else otherwise, shape, dtype, str(kind.get_type_name()))
