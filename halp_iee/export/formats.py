"""One function a format: it writes its files into a folder of their own and says what runs them."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from halp_iee.export.call import as_call
from halp_iee.export.onnx import evaluation_copy, export_onnx
from halp_iee.export.source import TOLERANCE, Format, Options, Precision, Source, calibration
from halp_iee.measure.engine import Engine
from halp_iee.measure.runtime import OnnxEngine
from halp_iee.run.directory import RunDirectory


@dataclass
class Candidate:
    """Files in a folder of their own, beside where they are to go, and what runs them."""

    files: tuple[Path, ...]
    engine: Engine
    error: float | None = None
    notes: list[str] = field(default_factory=list)


def require_runtime(run: RunDirectory, options: Options) -> None:
    """Find out before the work whether what the format needs is there."""
    if options.format == "openvino":
        from halp_iee.measure.openvino import require_openvino

        require_openvino()
    elif options.format == "tensorrt":
        tensorrt(run, options)


def tensorrt(run: RunDirectory, options: Options) -> Any:
    from halp_iee.export.tensorrt import require_tensorrt

    words = ["halp-iee", "export", str(run.root), "--precision", options.precision]
    words += ["--dynamic-batch"] if options.dynamic_batch else []
    return require_tensorrt(
        shlex.join([*words, "--format", "tensorrt"]), shlex.join([*words, "--format", "onnx", "--out", "exported.onnx"])
    )


class _Half(nn.Module):
    """The network in half precision between inputs and outputs in single precision."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.half()

    def forward(self, x: torch.Tensor) -> Any:
        from torch.utils import _pytree as pytree

        return pytree.tree_map_only(torch.Tensor, _single, self.model(x.half()))


def _single(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype is torch.float16 else tensor


def _onnx(source: Source, path: Path, precision: Precision | None = None) -> Candidate:
    options = source.options
    wanted = precision or options.precision
    made = path if wanted != "int8" else path.with_name("single.onnx")
    model = _Half(evaluation_copy(source.model)) if wanted == "fp16" else source.model
    done = export_onnx(
        model, source.example, made, metadata=source.metadata, check_inputs=source.checks,
        dynamic_batch=options.dynamic_batch, opset=options.opset,
        tolerance=TOLERANCE["fp16"] if wanted == "fp16" else None,
    )  # fmt: skip
    if wanted != "int8":
        error = done.max_error if wanted == "fp32" else None  # half was compared with half so far
        return Candidate((path,), OnnxEngine.load(path), error)
    from halp_iee.export.quantise import quantise

    method = quantise(made, path, calibration(source), metadata=source.metadata)
    return Candidate((path,), OnnxEngine.load(path), None, [f"ranges by {method}"])


def _openvino(source: Source, path: Path) -> Candidate:
    from halp_iee.export.openvino import write_ir
    from halp_iee.measure.openvino import OpenVinoEngine

    half = source.options.precision == "fp16"
    onnx = path.with_name("source.onnx")
    first = _onnx(source, onnx, "fp32" if half else None)
    files = write_ir(onnx, path, metadata=source.metadata, half_weights=half)
    return Candidate(files, OpenVinoEngine.load(path), None, first.notes)


def _tensorrt_engine(source: Source, path: Path) -> Candidate:
    from halp_iee.export.tensorrt import TensorRtEngine, write_engine

    trt = tensorrt(source.run, source.options)
    onnx = path.with_name("source.onnx")
    first = _onnx(source, onnx)
    size = len(source.example)
    files = write_engine(
        trt, onnx, path, metadata=source.metadata, exact=source.options.precision == "fp32",
        batches=(1, size, max(32, size)) if source.options.dynamic_batch else None,
        timing_cache=source.run.root / f"tensorrt-{trt.__version__}.timing",
    )  # fmt: skip
    return Candidate(files, TensorRtEngine.of_plan(trt, path.read_bytes()), None, first.notes)


def _torch_export(source: Source, path: Path) -> Candidate:
    from halp_iee.export.torch_export import program_of, write_program
    from halp_iee.measure.torch_engine import TorchEngine

    model = _Half(evaluation_copy(source.model)) if source.options.precision == "fp16" else source.model
    program = program_of(model, as_call(model, source.example), dynamic_batch=source.options.dynamic_batch)
    write_program(program, path, source.metadata)
    return Candidate((path,), TorchEngine.load(path))


def _safetensors(source: Source, path: Path) -> Candidate:
    from halp_iee.measure.torch_engine import TorchEngine
    from halp_iee.run.reload import dense_network
    from halp_iee.slim.artifact import load

    shutil.copyfile(source.run.artifact, path)
    again = load(path, dense_network(dict(source.result))[0]).eval()
    return Candidate((path,), TorchEngine.of_module(again, [source.example]))


WRITERS: dict[Format, Callable[[Source, Path], Candidate]] = {
    "onnx": _onnx, "openvino": _openvino, "tensorrt": _tensorrt_engine, "torch-export": _torch_export,
    "safetensors": _safetensors,
}  # fmt: skip
