"""`halp-iee export`: a run's network as a file to deploy."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from halp_iee.cli import options, show
from halp_iee.cli.progress import Bars

if TYPE_CHECKING:
    from halp_iee.export.gate import Exported

_FORMATS = ("onnx", "openvino", "tensorrt", "torch-export", "safetensors")


@click.command("export", cls=show.Command)
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--format", "form", type=click.Choice(_FORMATS), default="onnx", show_default=True)
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32", show_default=True,
    help="fp16 keeps inputs and outputs in fp32; int8 is calibrated on images of the run's training set.",
)  # fmt: skip
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Where to write.  [default: into the run]",
)
@click.option("--dynamic-batch", is_flag=True, help="Leave the batch open instead of fixing the run's.")
@click.option(
    "--opset", type=int, default=18, show_default=True, metavar="N", help="Version of the standard ONNX operators."
)
@click.option(
    "--max-drop", type=click.FloatRange(0, 1), default=None, metavar="SHARE",
    help="Loss of top-1 that is accepted; 0.01 is one point.  [default: 0.002 for fp32, 0.005 for fp16, 0.01 for int8]",
)  # fmt: skip
@click.option(
    "--calibration", type=click.Path(path_type=Path), default=None, metavar="FILE",
    help="An .npy file of inputs for int8 as the network takes them, where the run has no data.",
)  # fmt: skip
@click.option("--calibration-images", type=click.IntRange(1), default=256, show_default=True, metavar="N")
@click.option(
    "--test-images", type=click.IntRange(1), default=None, metavar="N",
    help="Images of the test set on which accuracy is compared, spread over it.  [default: 250 to 5000, fewer for "
    "larger networks]",
)  # fmt: skip
@options.json_flag
def command(
    run: Path,
    form: Any,
    precision: Any,
    out: Path | None,
    dynamic_batch: bool,
    opset: int,
    max_drop: float | None,
    calibration: Path | None,
    calibration_images: int,
    test_images: int | None,
    as_json: bool,
) -> int:
    """Write a run's slim network as a file to deploy.

    A file is written only if its runtime computes from it what the network computes in torch, on real images of the
    run's test set, top-1 included. OpenVINO and TensorRT are needed for their own formats only.

    \b
      halp-iee export runs/quickstart --dynamic-batch
      halp-iee export runs/quickstart --precision int8 --max-drop 0.005
      halp-iee export runs/quickstart --format openvino --precision fp16
    """
    from halp_iee.cli.bench import arrays
    from halp_iee.errors import UsageError
    from halp_iee.export.deploy import deploy
    from halp_iee.export.source import SUFFIX, Options
    from halp_iee.run.reload import finished_run

    chosen = Options(
        format=form, precision=precision, dynamic_batch=dynamic_batch, opset=opset, max_drop=max_drop,
        calibration_images=calibration_images, test_images=test_images,
    )  # fmt: skip
    chosen.check()
    if calibration is not None:
        given = arrays(calibration)
        if isinstance(given, dict):
            raise UsageError(f"cannot calibrate with {calibration}", "it holds several arrays", "give an .npy file")
        chosen = Options(**{**vars(chosen), "calibration": given})
    directory, result = finished_run(run)
    name = "exported" if precision == "fp32" else f"exported.{precision}"
    target = out or directory.root / f"{name}{SUFFIX[chosen.format]}"
    done = deploy(directory, result, target, chosen, Bars())
    if as_json:
        show.emit_json(asdict(done))
        return 0
    for line in _said(done):
        show.line(line)
    return 0


def _said(done: Exported) -> list[str]:
    lines = [f"{done.path}  {done.bytes / 1024:.0f} KiB  {done.precision}, {done.runtime}"]
    if done.max_error is not None:
        opset = f"opset {done.opset}; " if done.opset else ""
        lines.append(
            f"{opset}differs from torch by at most {done.max_error:.1e} of the output's scale "
            f"over {done.checks} checks (accepted: {done.tolerance:.0e})"
        )
    if done.top1 is not None and done.top1_torch is not None:
        lines.append(
            f"top-1 {done.top1:.2%} on {done.images} test images, {done.top1_torch:.2%} in torch "
            f"({100 * (done.top1 - done.top1_torch):+.2f} points, accepted: {-100 * (done.max_drop or 0):+.2f})"
        )
    if done.latency_ms is not None and done.latency_fp32_ms is not None:
        lines.append(
            f"latency {done.latency_ms:.4g} ms, {done.latency_fp32_ms:.4g} ms in fp32 "
            f"(x{done.latency_ms / done.latency_fp32_ms:.3g}), timed in turn here, one thread"
        )
    return [*lines, *done.notes]
