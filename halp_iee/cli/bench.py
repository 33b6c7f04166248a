"""`halp-iee bench`: latency and FPS of networks, side by side."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from halp_iee.cli import options, show
from halp_iee.cli.progress import Bars

if TYPE_CHECKING:
    from halp_iee.measure.bench import Bench, Row
    from halp_iee.measure.engine import Feeds


def _numbers(limit: int) -> Any:
    def parse(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
        if value is None:
            return None
        try:
            found = tuple(int(part) for part in value.split(","))
        except ValueError:
            found = ()
        if not found or not all(1 <= number <= limit for number in found):
            raise click.BadParameter(f"{value!r} is no list of whole numbers from 1 to {limit} such as 1,8,32")
        return found

    return parse


def _shapes(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    found = {}
    for word in value:
        name, colon, sizes = word.rpartition(":")
        if not colon or not name:
            raise click.BadParameter(f"{word!r} is not NAME:SHAPE such as input:1x3x224x224")
        found[name] = options.parse_shape(sizes) or ()
    return found


def _device(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    kind, _, index = value.partition(":")
    if kind not in ("cpu", "cuda") or (":" in value and (kind == "cpu" or not index.isdigit())):
        raise click.BadParameter(f"{value!r} is none of cpu, cuda, cuda:0, cuda:1, ...")
    return value


@click.command("bench", cls=show.Command)
@click.argument("artifacts", nargs=-1, required=True, metavar="ARTIFACT...")
@click.option(
    "--against", default=None, metavar="ARTIFACT", help="Compare every one with this, paired, with a verdict."
)
@click.option("--runtime", "runtimes", default="onnxruntime", show_default=True, metavar="LIST",
              help="Of onnxruntime, openvino, torch; or all: those that are installed.")  # fmt: skip
@click.option("--batch", "batches", default=None, metavar="LIST", callback=_numbers(65536),
              help="Images in one call, such as 1,8,32.  [default: the file's]")  # fmt: skip
@click.option("--threads", default="1", show_default=True, metavar="LIST", callback=_numbers(1024),
              help="CPU threads of the runtime, such as 1,2.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, callback=_device, help="cpu, cuda or cuda:N.")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 600), default=3.0, show_default=True,
    help="Time spent on each network in each setting.",
)  # fmt: skip
@options.input_shape
@click.option("--shape", "shapes", multiple=True, metavar="NAME:SHAPE", callback=_shapes,
              help="Shape of an input with open axes, such as input:1x3x224x224; may be repeated.")  # fmt: skip
@click.option("--inputs", type=click.Path(path_type=Path), default=None, metavar="FILE",
              help="An .npz file of arrays by input name, or an .npy of the one input; else random.")  # fmt: skip
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), default=None, metavar="FILE",
              help="Write the rows as CSV too; - is stdout, instead of the table.")  # fmt: skip
@options.json_flag
def command(
    artifacts: tuple[str, ...],
    against: str | None,
    runtimes: str,
    batches: tuple[int, ...] | None,
    threads: tuple[int, ...],
    device: str,
    seconds: float,
    input_shape: tuple[int, ...] | None,
    shapes: dict[str, tuple[int, ...]],
    inputs: Path | None,
    csv_file: Path | None,
    as_json: bool,
) -> int:
    """Measure latency and FPS of networks, side by side, in the runtimes that they may ship in.

    An ARTIFACT is a run's directory (its slim network), an ONNX file of any origin, an OpenVINO IR (.xml), a program of
    torch.export (.pt2), or the name of a network as in --model. All are run in turn, so that a drift of the
    machine touches all of them alike. The verdict says faster or slower only where the 95% interval of the ratio lies
    beyond 1% on that side; it is not to be read off the medians.

    \b
      halp-iee bench runs/quickstart --against runs/quickstart/dense.onnx --batch 1,8,32
      halp-iee bench mobilenet_v2 resnet18 --runtime all --threads 1,2
      halp-iee bench mine.onnx --shape images:1x3x640x640 --against theirs.onnx --csv bench.csv
    """
    from halp_iee.errors import UsageError
    from halp_iee.measure.bench import Plan, bench
    from halp_iee.measure.subjects import subject

    if csv_file is not None and str(csv_file) == "-" and as_json:
        raise UsageError("cannot print both", "--csv - and --json both go to stdout", "give --csv a file")
    bars = Bars()
    plan = Plan(
        runtimes=_runtimes(runtimes), batches=batches or (None,), threads=threads, seconds=seconds, shapes=shapes,
        inputs=arrays(inputs) if inputs else None, device=device,
    )  # fmt: skip
    plan.check()
    named = [subject(word, input_shape) for word in dict.fromkeys(artifacts)]
    found = bench(named, plan, subject(against, input_shape) if against else None, bars)
    for one in found.skipped:
        size = "" if one.batch is None else f" with batch {one.batch}"
        bars.say(f"left out: {one.artifact} in {one.runtime}{size}: {one.why}")
    if csv_file is not None and str(csv_file) != "-":
        show.write_text(csv_file, _csv(found))
    if as_json:
        show.emit_json({**found.to_json(), "environment": _environment()})
    elif csv_file is not None and str(csv_file) == "-":
        show.line(_csv(found).rstrip("\n"))
    else:
        show.line(_table(found))
    return 3 if any(row.unstable for row in found.rows) else 0


def _runtimes(text: str) -> tuple[str, ...]:
    from halp_iee.errors import DeviceError
    from halp_iee.measure.openvino import require_openvino
    from halp_iee.measure.runtime import require_onnxruntime

    if text != "all":
        return tuple(part.strip() for part in text.split(","))
    found = ["torch"]
    for name, require in (("openvino", require_openvino), ("onnxruntime", require_onnxruntime)):
        try:
            require()
        except DeviceError:
            continue
        found.insert(0, name)
    return tuple(found)


def arrays(path: Path) -> Any:
    """What an .npy or .npz file holds; nothing in it is run."""
    import zipfile

    import numpy as np

    from halp_iee.errors import DataError

    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            arrays: Feeds = {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"cannot read the inputs {path}", reason, "give an .npy or .npz file of plain arrays") from None
    return arrays


def _environment() -> dict[str, Any]:
    import platform

    from halp_profiler.devices import attached

    found = attached()
    return {
        "processor": found[0].label, "devices": [one.label for one in found], "system": platform.platform(),
        "python": platform.python_version(),
    }  # fmt: skip


def _csv(found: Bench) -> str:
    from halp_iee.measure.bench import COLUMNS

    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in found.rows:
        writer.writerow({name: "" if value is None else value for name, value in asdict(row).items()})
    return text.getvalue()


def _table(found: Bench) -> str:
    compared = any(row.verdict for row in found.rows)
    energy = any(row.energy_mj is not None for row in found.rows)
    headers = ["network", "runtime", "batch", "threads", "median ms", "p90 ms", "p99 ms", "FPS"]
    headers += ["mJ an image"] if energy else []
    headers += ["ratio", "95% interval", "verdict"] if compared else []
    return show.table(headers, [_cells(row, compared, energy) for row in found.rows])


def _cells(row: Row, compared: bool, energy: bool) -> list[str]:
    cells = [row.artifact + (" (unstable)" if row.unstable else ""), row.runtime, str(row.batch), str(row.threads),
             f"{row.median_ms:.4g}", f"{row.p90_ms:.4g}", f"{row.p99_ms:.4g}", f"{row.fps:.1f}"]  # fmt: skip
    if energy:
        cells.append("-" if row.energy_mj is None else f"{row.energy_mj:.4g}")
    if compared:
        if row.ratio is None:
            return [*cells, "-", "-", "-"]
        cells += [f"{row.ratio:.3f}", f"{row.ratio_low:.3f} to {row.ratio_high:.3f}", str(row.verdict)]
    return cells
