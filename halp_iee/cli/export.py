"""`halp-iee export`: a run's network as a file to deploy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from halp_iee.cli import options, show


@click.command("export", cls=show.Command)
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--format", "form", type=click.Choice(["onnx", "safetensors"]), default="onnx", show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Where to write.  [default: into the run]",
)
@click.option("--dynamic-batch", is_flag=True, help="Leave the batch open instead of fixing the run's.")
@options.json_flag
def command(run: Path, form: str, out: Path | None, dynamic_batch: bool, as_json: bool) -> int:
    """Write a run's slim network as a file to deploy.

    An ONNX file is written only if ONNX Runtime computes from it what the network computes in torch.
    """
    import shutil

    from halp_iee.errors import HalpError
    from halp_iee.export.onnx import export_onnx
    from halp_iee.run.reload import finished_run, slim_network
    from halp_profiler.files import whole

    directory, result = finished_run(run)
    target = out or directory.root / ("exported.onnx" if form == "onnx" else "exported.safetensors")
    model, example = slim_network(directory, result)
    if form == "safetensors":
        if not target.parent.is_dir():
            raise HalpError(
                f"cannot write {target}", f"there is no folder {target.parent}", "make it first, or give another --out"
            )
        with whole(target) as partial:
            shutil.copyfile(directory.artifact, partial)
        document: dict[str, Any] = {"path": str(target), "format": form, "bytes": target.stat().st_size}
    else:
        provenance = {
            f"halp_iee.{key}": str(result[key]) for key in ("version", "model", "data", "target", "method", "seed")
        }
        done = export_onnx(model, example, target, metadata=provenance, dynamic_batch=dynamic_batch)
        document = {
            "path": str(done.path), "format": form, "bytes": done.bytes, "opset": done.opset,
            "max_error": done.max_error, "tolerance": done.tolerance, "dynamic_batch": done.dynamic_batch,
        }  # fmt: skip
    if as_json:
        show.emit_json(document)
        return 0
    show.line(f"{document['path']}  {document['bytes'] / 1024:.0f} KiB")
    if form == "onnx":
        show.line(
            f"opset {document['opset']}; differs from torch by at most {document['max_error']:.1e} "
            f"of the output's scale (accepted: {document['tolerance']:.0e})"
        )
    return 0
