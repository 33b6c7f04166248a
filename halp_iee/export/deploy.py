"""A run's network as files for production: each proved against the slim network on the run's data, or not written."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from halp_iee.errors import ArtifactError, HalpError, ParityError, UsageError
from halp_iee.export import parity
from halp_iee.export.call import Call, as_call
from halp_iee.export.onnx import evaluation_copy, export_onnx, writable
from halp_iee.measure.engine import Engine
from halp_iee.measure.runtime import OnnxEngine
from halp_iee.progress import Progress, Silent
from halp_iee.run.directory import RunDirectory, read_json, write_json

if TYPE_CHECKING:
    from halp_iee.train.records import Data

Format = Literal["onnx", "openvino", "tensorrt", "torch-export", "safetensors"]
Precision = Literal["fp32", "fp16", "int8"]
SUFFIX: dict[Format, str] = {
    "onnx": ".onnx", "openvino": ".xml", "tensorrt": ".engine", "torch-export": ".pt2", "safetensors": ".safetensors",
}  # fmt: skip
PRECISIONS: dict[Format, tuple[Precision, ...]] = {
    "onnx": ("fp32", "fp16", "int8"), "openvino": ("fp32", "fp16", "int8"), "tensorrt": ("fp32", "fp16", "int8"),
    "torch-export": ("fp32", "fp16"), "safetensors": ("fp32",),
}  # fmt: skip
MAX_DROP: dict[Precision, float] = {"fp32": 0.002, "fp16": 0.005, "int8": 0.01}
"""How much top-1 an export may lose against the slim network, as a share, when nothing else is said."""
_TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2}
_CHECKS = 4  # batches of real images on which every output is compared
_OPSETS = (13, 26)


@dataclass(frozen=True)
class Options:
    """How a network is exported.

    Attributes:
        format: of the file.
        precision: ``fp16``: weights and arithmetic in half precision, inputs and outputs stay in single (OpenVINO:
            the weights alone); ``int8``: quantised with calibration on real images.
        dynamic_batch: leave the batch open; else it is the run's.
        opset: version of the standard ONNX operators.
        max_drop: loss of top-1 that is accepted; that of ``MAX_DROP`` when None.
        calibration: inputs for int8 where the run has no data, as the network takes them.
        calibration_images: how many images of the training set calibrate int8.
        test_images: how many images of the test set are compared at most.
    """

    format: Format = "onnx"
    precision: Precision = "fp32"
    dynamic_batch: bool = False
    opset: int = 18
    max_drop: float | None = None
    calibration: np.ndarray | None = None
    calibration_images: int = 256
    test_images: int = 5000

    @property
    def drop(self) -> float:
        return MAX_DROP[self.precision] if self.max_drop is None else self.max_drop

    def check(self) -> None:
        """Raises UsageError where the options do not go together."""
        if self.precision not in PRECISIONS[self.format]:
            raise UsageError(
                f"{self.format} cannot be exported as {self.precision}",
                f"it is made in {', '.join(PRECISIONS[self.format])}", "choose one of these, or --format onnx",
            )  # fmt: skip
        if not _OPSETS[0] <= self.opset <= _OPSETS[1]:
            raise UsageError(f"no opset {self.opset}", f"there are {_OPSETS[0]} to {_OPSETS[1]}", "18 is a good choice")


@dataclass(frozen=True)
class Exported:
    """What was written, and how it was proved.

    Attributes:
        path: the main file.
        files: all of them.
        bytes: of all of them.
        max_error: largest disagreement with torch relative to each output's scale; for int8, on real images.
        checks: number of input sets that were compared.
        top1: of the exported network in its runtime, on ``images`` test images; None without data.
        top1_torch: of the slim network in torch on the same images.
        latency_ms, latency_fp32_ms: of one call on this CPU, timed in turn, where it is not fp32 and runs here.
    """

    path: str
    format: str
    precision: str
    files: tuple[str, ...]
    bytes: int
    opset: int | None
    dynamic_batch: bool
    runtime: str
    max_error: float | None
    tolerance: float | None
    checks: int
    images: int = 0
    top1: float | None = None
    top1_torch: float | None = None
    max_drop: float | None = None
    latency_ms: float | None = None
    latency_fp32_ms: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Source:
    """The slim network, examples of its input, and its data."""

    model: nn.Module
    example: torch.Tensor
    data: Data | None
    result: Mapping[str, Any]
    options: Options
    metadata: Mapping[str, str]
    run: RunDirectory

    @property
    def checks(self) -> list[torch.Tensor]:
        """Real images in batches of the example's size."""
        if self.data is None:
            return []
        found = []
        for images, _ in self.data.test.batches(len(self.example)):
            if len(images) == len(self.example):
                found.append(images)
            if len(found) == _CHECKS:
                break
        return found

    def calls(self) -> list[Call]:
        call = as_call(self.model, self.example)
        given = [as_call(self.model, images) for images in self.checks]
        return parity.calls_to_check(call, given, self.options.dynamic_batch)

    def test_batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        assert self.data is not None, "asked for with data only"
        left = self.options.test_images
        for images, labels in self.data.test.batches(250):
            yield images[:left], labels[:left]
            left -= len(labels)
            if left <= 0:
                return


@dataclass
class _Candidate:
    """Files in a folder of their own, beside where they are to go, and what runs them."""

    files: tuple[Path, ...]
    engine: Engine
    error: float | None = None
    notes: list[str] = field(default_factory=list)


def deploy(run: RunDirectory, result: Mapping[str, Any], out: Path, options: Options, progress: Progress | None = None
) -> Exported:  # fmt: skip
    """Export the slim network of a finished run.

    The files are made in a folder beside ``out`` and run in the runtime that they are for. Outputs must agree with the
    slim network in torch on the example, random inputs and real images of the test set (``parity.prove``), and top-1
    must be that of the slim network, less ``options.drop`` at most. Only then do they take their place, the main
    file last. What was found is kept in the run's ``exports.json``.

    Raises:
        ArtifactError: the run's artifact is broken, was changed since it was measured, or ``out`` cannot be written.
        DeviceError: the runtime is not there.
        GraphError: the format cannot express the network.
        ParityError: they disagree; nothing was written.
        UsageError: the options do not go together.
    """
    options.check()
    progress = progress or Silent()
    if out.suffix.lower() != SUFFIX[options.format]:
        raise UsageError(f"cannot write {options.format} to {out}", f"its file ends in {SUFFIX[options.format]}",
                         "give --out such a name")  # fmt: skip
    writable(out)
    _require_runtime(run, options)
    source = _source(run, result, options)
    with progress.task(f"export to {options.format}") as task, _beside(out) as folder:
        candidate = _WRITERS[options.format](source, folder / out.name)
        task.update(1, 3, "checking")
        done = _prove(source, candidate, out)
        task.update(2, 3, "writing")
        _put(candidate.files, out.parent)
    _record(run, done)
    return done


def _source(run: RunDirectory, result: Mapping[str, Any], options: Options) -> _Source:
    from halp_iee.run.reload import slim_network

    model, example = slim_network(run, dict(result))
    data = None
    if result["data"] is not None:
        from halp_iee.train.data import load

        data = load(result["data"], image_size=int(result["input_shape"][-1]))
        example = next(iter(data.test.batches(len(example))))[0] if len(data.test) >= len(example) else example
    keys = ("version", "model", "data", "target", "method", "seed", "device", "runtime", "measured_ms", "top1")
    metadata = {f"halp_iee.{key}": str(result[key]) for key in keys if result.get(key) is not None}
    metadata |= {"halp_iee.precision": options.precision}
    return _Source(evaluation_copy(model), example, data, result, options, metadata, run)


def _require_runtime(run: RunDirectory, options: Options) -> None:
    """Find out before the work whether what the format needs is there."""
    if options.format == "openvino":
        from halp_iee.measure.openvino import require_openvino

        require_openvino()
    elif options.format == "tensorrt":
        _tensorrt(run, options)


def _tensorrt(run: RunDirectory, options: Options) -> Any:
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


def _onnx(source: _Source, path: Path, precision: Precision | None = None) -> _Candidate:
    options = source.options
    wanted = precision or options.precision
    made = path if wanted != "int8" else path.with_name("single.onnx")
    model = _Half(evaluation_copy(source.model)) if wanted == "fp16" else source.model
    done = export_onnx(
        model, source.example, made, metadata=source.metadata, check_inputs=source.checks,
        dynamic_batch=options.dynamic_batch, opset=options.opset,
        tolerance=_TOLERANCE["fp16"] if wanted == "fp16" else None,
    )  # fmt: skip
    if wanted != "int8":
        error = done.max_error if wanted == "fp32" else None  # half was compared with half so far
        return _Candidate((path,), OnnxEngine.load(path), error)
    from halp_iee.export.quantise import quantise

    method = quantise(made, path, _calibration(source), metadata=source.metadata)
    return _Candidate((path,), OnnxEngine.load(path), None, [f"ranges by {method}"])


def _calibration(source: _Source) -> np.ndarray:
    options = source.options
    if options.calibration is not None:
        given = np.asarray(options.calibration, dtype=np.float32)
        if given.ndim != source.example.dim() or given.shape[1:] != tuple(source.example.shape[1:]) or not len(given):
            raise UsageError(
                "the calibration inputs do not fit", f"they are {given.shape}, the network takes "
                f"(N, {', '.join(map(str, source.example.shape[1:]))})", "give them as the network takes them",
            )  # fmt: skip
        return given
    if source.data is None:
        raise UsageError(
            "cannot quantise to int8", "the run has no data, and ranges must be found on real inputs",
            "give --calibration FILE.npy with some hundred of them",
        )  # fmt: skip
    found: list[np.ndarray] = []
    for images, _ in source.data.train.batches(64, shuffle=True, seed=int(source.result["seed"])):
        found.append(images.numpy())
        if sum(map(len, found)) >= options.calibration_images:
            break
    return np.concatenate(found)[: options.calibration_images]


def _openvino(source: _Source, path: Path) -> _Candidate:
    from halp_iee.export.openvino import write_ir
    from halp_iee.measure.openvino import OpenVinoEngine

    half = source.options.precision == "fp16"
    onnx = path.with_name("source.onnx")
    first = _onnx(source, onnx, "fp32" if half else None)
    files = write_ir(onnx, path, metadata=source.metadata, half_weights=half)
    return _Candidate(files, OpenVinoEngine.load(path), None, first.notes)


def _tensorrt_engine(source: _Source, path: Path) -> _Candidate:
    from halp_iee.export.tensorrt import TensorRtEngine, write_engine

    trt = _tensorrt(source.run, source.options)
    onnx = path.with_name("source.onnx")
    first = _onnx(source, onnx)
    size = len(source.example)
    files = write_engine(
        trt, onnx, path, metadata=source.metadata, exact=source.options.precision == "fp32",
        batches=(1, size, max(32, size)) if source.options.dynamic_batch else None,
        timing_cache=source.run.root / f"tensorrt-{trt.__version__}.timing",
    )  # fmt: skip
    return _Candidate(files, TensorRtEngine.of_plan(trt, path.read_bytes()), None, first.notes)


def _torch_export(source: _Source, path: Path) -> _Candidate:
    from halp_iee.export.torch_export import program_of, write_program
    from halp_iee.measure.torch_engine import TorchEngine

    model = _Half(evaluation_copy(source.model)) if source.options.precision == "fp16" else source.model
    program = program_of(model, as_call(model, source.example), dynamic_batch=source.options.dynamic_batch)
    write_program(program, path, source.metadata)
    return _Candidate((path,), TorchEngine.load(path))


def _safetensors(source: _Source, path: Path) -> _Candidate:
    from halp_iee.measure.torch_engine import TorchEngine
    from halp_iee.run.reload import dense_network
    from halp_iee.slim.artifact import load

    shutil.copyfile(source.run.artifact, path)
    again = load(path, dense_network(dict(source.result))[0]).eval()
    return _Candidate((path,), TorchEngine.of_module(again, [source.example]))


_WRITERS: dict[Format, Callable[[_Source, Path], _Candidate]] = {
    "onnx": _onnx, "openvino": _openvino, "tensorrt": _tensorrt_engine, "torch-export": _torch_export,
    "safetensors": _safetensors,
}  # fmt: skip


def _prove(source: _Source, candidate: _Candidate, out: Path) -> Exported:
    """Outputs and accuracy against the slim network.

    Raises:
        ParityError, ArtifactError: as ``deploy``.
    """
    options, engine = source.options, candidate.engine
    calls, error, tolerance = source.calls(), candidate.error, _TOLERANCE.get(options.precision)
    if tolerance is not None and error is None:
        error = parity.prove(source.model, engine, calls, tolerance)
    top1 = top1_torch = None
    images = 0
    if source.data is not None and source.result["top1"] is not None:
        top1, top1_torch, images = _accuracy(source, engine)
    elif options.precision == "int8":
        _agree(source, engine)
    latency = _latency(source, engine) if options.precision != "fp32" and options.format != "tensorrt" else None
    return Exported(
        path=str(out), format=options.format, precision=options.precision,
        files=tuple(str(out.parent / file.name) for file in candidate.files),
        bytes=sum(file.stat().st_size for file in candidate.files),
        opset=None if options.format in ("torch-export", "safetensors") else options.opset,
        dynamic_batch=options.dynamic_batch, runtime=engine.runtime, max_error=error, tolerance=tolerance,
        checks=len(calls), images=images, top1=top1, top1_torch=top1_torch,
        max_drop=None if top1 is None else options.drop,
        latency_ms=latency[0] if latency else None, latency_fp32_ms=latency[1] if latency else None,
        notes=tuple(candidate.notes),
    )  # fmt: skip


def _accuracy(source: _Source, engine: Engine) -> tuple[float, float, int]:
    """Top-1 in the runtime and in torch on the same images, both held against each other and the run's own."""
    from halp_iee.measure.accuracy import top1
    from halp_iee.measure.torch_engine import TorchEngine

    expected = top1(TorchEngine.of_module(source.model, [source.example]), source.test_batches())
    recorded = float(source.result["top1"])
    whole = source.data is not None and expected.total == len(source.data.test)
    slack = max(MAX_DROP["fp32"], 1.5 / expected.total)
    if whole and abs(expected.top1 - recorded) > slack:
        raise ArtifactError(
            f"The artifact {source.run.artifact} is not the one that the run measured",
            f"its top-1 is {expected.top1:.2%} and the run recorded {recorded:.2%}",
            "It was changed since; run the job again with --fresh",
        )  # fmt: skip
    found = top1(engine, source.test_batches())
    drop = expected.top1 - found.top1
    # A rounding may turn one image of a small test set; more than that is a difference.
    if drop > max(source.options.drop, 1 / expected.total if source.options.precision == "fp32" else 0.0) + 1e-9:
        raise ParityError(
            f"The {source.options.precision} export was refused",
            f"its top-1 in {engine.runtime} is {found.top1:.2%} and the slim network's {expected.top1:.2%} on "
            f"{expected.total} test images, a drop of {100 * drop:.2f} points where "
            f"{100 * source.options.drop:.2f} are allowed",
            "Nothing was written; allow more with --max-drop, or take another --precision",
        )  # fmt: skip
    return found.top1, expected.top1, expected.total


def _agree(source: _Source, engine: Engine) -> None:
    """Without labels: how often the classes are those of the slim network, on the inputs given for calibration."""
    from halp_iee.export.quantise import agreement
    from halp_iee.measure.torch_engine import TorchEngine

    inputs = _calibration(source)[:256]
    whole = len(inputs) // len(source.example) * len(source.example) or len(inputs)
    same = agreement(TorchEngine.of_module(source.model, [source.example]), engine, inputs[:whole])
    if 1 - same > source.options.drop:
        raise ParityError(
            "The int8 export was refused",
            f"it finds another class than the slim network in {1 - same:.2%} of the places of the calibration "
            f"inputs, where {source.options.drop:.2%} are allowed",
            "Nothing was written; allow more with --max-drop, or take another --precision",
        )  # fmt: skip


def _latency(source: _Source, engine: Engine) -> tuple[float, float] | None:
    """Latency of the export and of the slim network in single precision in the same runtime, timed in turn."""
    from halp_iee.measure.engine import bind
    from halp_iee.measure.openvino import OpenVinoEngine
    from halp_iee.measure.torch_engine import TorchEngine
    from halp_profiler.timing import time_interleaved

    images = source.example.numpy()
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(engine, TorchEngine):
            reference: Engine = TorchEngine.of_module(source.model, [source.example])
        else:
            single = export_onnx(source.model, source.example, Path(folder) / "single.onnx").path
            load = OpenVinoEngine.load if isinstance(engine, OpenVinoEngine) else OnnxEngine.load
            reference = load(single)
        engines = {"export": engine, "single": reference}
        calls = {name: one.prepare(bind(one.inputs, images)) for name, one in engines.items()}
        found = time_interleaved(calls, min_seconds=1.0)
    return found["export"].median_ms, found["single"].median_ms


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder on the same file system, gone in the end."""
    try:
        folder = tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent)
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {out}", (error.strerror or str(error)).lower(), "Choose a folder that you may write to"
        ) from error
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put(files: tuple[Path, ...], folder: Path) -> None:
    """All files to their places: the main file last, so where it is the others are."""
    main = folder / files[0].name
    try:
        for file in files:
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        if len(files) > 1:
            main.unlink(missing_ok=True)
        for file in reversed(files):
            os.replace(file, folder / file.name)
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {main}", (error.strerror or str(error)).lower(), "Free some space or choose another folder"
        ) from error


def _record(run: RunDirectory, done: Exported) -> None:
    """Keep what was found in the run, for its report and its model card; the latest of each path."""
    known = [one for one in exports_of(run) if one.get("path") != done.path]
    try:
        write_json(run.exports, [*known, asdict(done)])
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {run.root / 'exports.json'}", (error.strerror or str(error)).lower(),
            "The export itself is written; make the run's directory writable to keep its record",
        ) from error  # fmt: skip


def exports_of(run: RunDirectory) -> list[dict[str, Any]]:
    """What is known of a run's exports; nothing where the record is missing or broken."""
    try:
        found = read_json(run.exports, list[dict[str, Any]])
    except HalpError:
        return []
    return [one for one in found if Path(str(one.get("path"))).is_file()]
