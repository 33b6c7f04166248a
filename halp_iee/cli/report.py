"""`halp-iee report`: a run's page and model card, made again; or several runs on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from halp_iee.cli import options, show


@click.command("report", cls=show.Command)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, metavar="FILE",
    help="Where several runs' page goes.  [default: comparison.html]",
)  # fmt: skip
@click.option(
    "--peers", type=click.Path(path_type=Path), default=None, metavar="FILE",
    help="A JSON list of networks that others made: name, latency_ms, top1; marked beside the runs.",
)  # fmt: skip
@click.option(
    "--license", "license_", default=None, metavar="ID", help="Of the weights, for the model card, such as apache-2.0."
)
@options.json_flag
def command(runs: tuple[Path, ...], out: Path | None, peers: Path | None, license_: str | None, as_json: bool) -> int:
    """Write a run's report and model card again, or compare several runs.

    One RUN: its report.html and the folder hub/, which can be uploaded as it is. Several: one page with accuracy
    against measured latency, the frontier, the dense networks and the peers, and a table that sorts. Runs that were
    trained to a sparsity are shown by how their masks change, up to four side by side.

    \b
      halp-iee report runs/quickstart --license apache-2.0
      halp-iee report runs/r50-* --out r50.html --peers peers.json
    """
    from halp_iee.errors import UsageError
    from halp_iee.run.reload import check_unchanged, finished_run, finished_sparse_run

    sparse = [found for run in runs if (found := finished_sparse_run(run)) is not None]
    if sparse and len(sparse) == len(runs) and peers is None and license_ is None:
        return _sparse(dict(zip(runs, sparse, strict=True)), out, as_json)
    if len(runs) > 1 or out is not None or peers is not None:
        if license_ is not None:
            raise UsageError("cannot state a licence", "it is stated run by run", "call report with one run")
        return _compare(runs, out or Path("comparison.html"), peers, as_json)
    from halp_iee.run.results import write_card, write_report

    directory, result = finished_run(runs[0])
    for file in (directory.artifact, directory.onnx):  # what is published is what was measured
        if file.is_file():
            check_unchanged(file, result)
    document = {"report": str(write_report(directory, result)), "hub": str(write_card(directory, result, license_))}
    if as_json:
        show.emit_json(document)
    else:
        for path in document.values():
            show.line(path)
    return 0


def _compare(runs: tuple[Path, ...], out: Path, peers: Path | None, as_json: bool) -> int:
    from dataclasses import asdict

    from halp_iee.report.compare import entries, write
    from halp_iee.run.directory import read_json
    from halp_iee.run.reload import finished_run

    results = {_name(run, runs): finished_run(run)[1] for run in dict.fromkeys(runs)}
    others = read_json(peers, list[dict[str, Any]]) if peers else []
    found = entries(results, others)
    path = write(found, out)
    if as_json:
        rows = [{key: value for key, value in asdict(one).items() if key != "result"} for one in found]
        show.emit_json({"report": str(path), "entries": rows})
        return 0
    show.line(show.table(["network", "kind", "latency ms", "top-1", "frontier"], [
        [one.name, one.kind, "-" if one.latency_ms is None else f"{one.latency_ms:.4g}",
         "-" if one.top1 is None else f"{one.top1:.2%}", "yes" if one.frontier else ""]
        for one in sorted(found, key=lambda e: (e.setting, e.latency_ms or 0.0))
    ]))  # fmt: skip
    show.line(path)
    return 0


def _sparse(runs: dict[Path, tuple[Any, dict[str, Any]]], out: Path | None, as_json: bool) -> int:
    """The page of trainings to a sparsity, one or several side by side."""
    from halp_iee.run.sparse import write_pages

    names = {_name(path, tuple(runs)): found for path, found in runs.items()}
    page = write_pages(names, out)
    if as_json:
        show.emit_json({"report": str(page), "entries": [{"name": n, **result} for n, (_, result) in names.items()]})
        return 0
    show.line(show.table(["run", "method", "top-1", "sparsity", "FLOPs", "nonzeros"], [
        [name, str(of["method"]), f"{of['top1']:.2%}", f"{of['sparsity']:.2%}", show.count(of["flops"]),
         show.count(of["nonzeros"])] for name, (_, of) in names.items()
    ]))  # fmt: skip
    show.line(page)
    return 0


def _name(run: Path, runs: tuple[Path, ...]) -> str:
    """The folder's name, or the whole path where two folders share one."""
    names = [one.resolve().name for one in runs]
    name = run.resolve().name
    return name if names.count(name) == 1 else str(run)
