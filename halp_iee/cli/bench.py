"""`halp-iee bench`: latency and FPS of networks, side by side."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from halp_iee.cli import options, show
from halp_iee.cli.progress import Bars


@click.command("bench", cls=show.Command)
@click.argument("artifacts", nargs=-1, required=True, metavar="ARTIFACT...")
@click.option(
    "--against", default=None, metavar="ARTIFACT", help="Compare every one with this, paired, with a verdict."
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="CPU threads of the runtime."
)
@click.option("--batch", type=click.IntRange(1, 65536), default=None, help="Images in one call.  [default: the file's]")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 600), default=3.0, show_default=True, help="Time spent on each network."
)
@options.input_shape
@options.json_flag
def command(
    artifacts: tuple[str, ...],
    against: str | None,
    threads: int,
    batch: int | None,
    seconds: float,
    input_shape: tuple[int, ...] | None,
    as_json: bool,
) -> int:
    """Measure latency and FPS in ONNX Runtime.

    An ARTIFACT is an ONNX file, a run's directory (its slim network), or the name of a network as in --model. All
    are run in turn, so that a drift of the machine touches all of them alike.

    \b
      halp-iee bench runs/quickstart --against runs/quickstart/dense.onnx
      halp-iee bench mobilenet_v2 resnet18
    """
    from halp_iee.measure.compare import compare_onnx
    from halp_iee.measure.latency import fps, measure_onnx
    from halp_iee.measure.runtime import fixed_batch, session

    bars = Bars()
    with tempfile.TemporaryDirectory() as folder:

        def file(name: str) -> Path:
            return _file(name, Path(folder), batch or 1, input_shape, bars)

        files = {name: file(name) for name in dict.fromkeys(artifacts)}
        reference = file(against) if against else None
        with bars.task("measuring"):
            timings = measure_onnx(files, threads=threads, batch=batch, seconds=seconds, progress=bars.say)
        rows: list[dict[str, Any]] = []
        for name, timing in timings.items():
            size = batch or fixed_batch(session(files[name])) or 1
            row = {
                "artifact": name, "median_ms": timing.median_ms, "p90_ms": timing.p90_ms, "p99_ms": timing.p99_ms,
                "fps": fps(timing, size), "samples": timing.samples, "unstable": timing.unstable,
                "threads": threads, "batch": size,
            }  # fmt: skip
            if reference is not None:
                with bars.task(f"{name} against {against}"):
                    c = compare_onnx(files[name], reference, threads=threads, batch=batch, seconds=max(2.0, seconds))
                row |= {
                    "against": against,
                    "ratio": c.ratio,
                    "ratio_low": c.low,
                    "ratio_high": c.high,
                    "verdict": c.verdict,
                }
            rows.append(row)
    if as_json:
        show.emit_json({"results": rows})
    else:
        headers = ["network", "median ms", "p90 ms", "p99 ms", "FPS"] + (
            ["ratio", "95% interval", "verdict"] if against else []
        )
        show.line(show.table(headers, [_cells(row) for row in rows]))
    return 3 if any(row["unstable"] for row in rows) else 0


def _cells(row: dict[str, Any]) -> list[str]:
    cells = [row["artifact"] + (" (unstable)" if row["unstable"] else ""), f"{row['median_ms']:.4g}",
             f"{row['p90_ms']:.4g}", f"{row['p99_ms']:.4g}", f"{row['fps']:.1f}"]  # fmt: skip
    if "ratio" in row:
        cells += [f"{row['ratio']:.3f}", f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}", row["verdict"]]
    return cells


def _file(name: str, folder: Path, batch: int, shape: tuple[int, ...] | None, bars: Bars) -> Path:
    """The ONNX file behind a name: the file itself, a run's, or one made for the purpose."""
    from halp_iee.errors import HalpError

    path = Path(name)
    if path.is_dir():
        if not (path / "model.onnx").is_file():
            raise HalpError(
                f"cannot measure {name}", "the directory holds no model.onnx", "finish the run, or name an ONNX file"
            )
        return path / "model.onnx"
    if path.is_file():
        return path
    if path.suffix == ".onnx" or (("/" in name) and ".py:" not in name):
        raise HalpError(f"cannot measure {name}", "there is no such file or directory", "check the path")
    import torch

    from halp_iee import models
    from halp_iee.export.onnx import export_onnx

    model = models.build(name).eval()
    with bars.task(f"exporting {name}"):
        out = folder / f"{len(list(folder.iterdir()))}.onnx"
        return export_onnx(model, torch.randn(batch, *(shape or models.default_input_shape(name))), out).path
