"""The gate that every export passes: the slim network's outputs and its accuracy, in the runtime that it is for."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from halp_iee.errors import ArtifactError, ParityError
from halp_iee.export import parity
from halp_iee.export.call import as_call
from halp_iee.export.formats import Candidate
from halp_iee.export.onnx import export_onnx
from halp_iee.export.source import MAX_DROP, TOLERANCE, Source, calibration
from halp_iee.measure.engine import Engine
from halp_iee.measure.runtime import OnnxEngine


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


def prove(source: Source, candidate: Candidate, out: Path) -> Exported:
    """Outputs and accuracy against the slim network.

    Raises:
        ParityError, ArtifactError: as ``deploy``.
    """
    options, engine = source.options, candidate.engine
    calls, error, tolerance = source.calls(), candidate.error, TOLERANCE.get(options.precision)
    if tolerance is not None and error is None:
        error = parity.prove(source.model, engine, calls, tolerance)
    _as_measured(source)
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
        notes=(*candidate.notes, *([] if parity.responds(source.model, calls) else [f"note: {parity.DEAF}"])),
    )  # fmt: skip


def _accuracy(source: Source, engine: Engine) -> tuple[float, float, int]:
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


def _as_measured(source: Source) -> None:
    """The run's own ONNX file, which is what was timed, computes what the artifact does: accuracy alone would not
    tell a weight that was changed a little."""
    from halp_iee.run.reload import check_unchanged

    if not source.run.onnx.is_file():
        return
    check_unchanged(source.run.onnx, source.result)
    call = as_call(source.model, source.example)
    try:
        parity.prove(source.model, OnnxEngine.load(source.run.onnx), [call], 10 * TOLERANCE["fp32"])
    except ParityError as error:
        raise ArtifactError(
            f"The artifact {source.run.artifact} is not the one that the run measured",
            f"{source.run.onnx.name} computes something else ({error.why})",
            "It was changed since; run the job again with --fresh",
        ) from error  # fmt: skip


def _agree(source: Source, engine: Engine) -> None:
    """Without labels: how often the classes are those of the slim network, on the inputs given for calibration."""
    from halp_iee.export.quantise import agreement
    from halp_iee.measure.torch_engine import TorchEngine

    inputs = calibration(source)[:256]
    whole = len(inputs) // len(source.example) * len(source.example) or len(inputs)
    same = agreement(TorchEngine.of_module(source.model, [source.example]), engine, inputs[:whole])
    if 1 - same > source.options.drop:
        raise ParityError(
            "The int8 export was refused",
            f"it finds another class than the slim network in {1 - same:.2%} of the places of the calibration "
            f"inputs, where {source.options.drop:.2%} are allowed",
            "Nothing was written; allow more with --max-drop, or take another --precision",
        )  # fmt: skip


def _latency(source: Source, engine: Engine) -> tuple[float, float] | None:
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
        found = time_interleaved(calls, min_seconds=1.0, alike=True)
    return found["export"].median_ms, found["single"].median_ms
