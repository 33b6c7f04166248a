"""`halp-iee tables`: what latency tables there are, and what is in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from halp_iee.cli import options, show

if TYPE_CHECKING:
    from halp_iee.latency import LatencyTable
    from halp_profiler.kernel import Kernel


@click.group("tables", invoke_without_command=True)
@options.json_flag
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> int:
    """List, show, check and merge latency tables. Without a subcommand: list."""
    return listing(as_json) if ctx.invoked_subcommand is None else 0


@command.command("list")
@options.json_flag
def list_(as_json: bool) -> int:
    """List the tables that can be named, and where they lie."""
    return listing(as_json)


def listing(as_json: bool) -> int:
    from halp_iee.errors import HalpError
    from halp_iee.latency import LatencyTable
    from halp_iee.latency.table import available

    found: list[dict[str, Any]] = []
    for path in available():
        try:
            found.append(LatencyTable.load(path).summary())
        except HalpError as error:  # one broken table must not hide the others
            found.append({"name": path.stem, "path": str(path), "error": str(error)})
    if as_json:
        show.emit_json({"tables": found})
        return 0
    rows = [
        [t["name"], t["device"], t["source"], *(str(t[k] or "-") for k in ("batch", "threads", "kernels", "points"))]
        for t in found
        if "error" not in t
    ]  # fmt: skip
    show.line(show.table(["table", "device", "source", "batch", "threads", "kernels", "points"], rows))
    for t in found:
        if "error" in t:
            show.line(f"{t['name']}: {t['error']}")
    return 0


@command.command("show")
@click.argument("table", metavar="TABLE")
@click.argument("kernel", required=False, metavar="[KERNEL]")
@options.json_flag
def show_(table: str, kernel: str | None, as_json: bool) -> int:
    """Show what a table holds; with a KERNEL (its number or part of its key), draw the staircase of that one."""
    from halp_iee.latency import LatencyTable

    loaded = LatencyTable.load(table)
    if kernel is not None:
        return _staircase(loaded, _find(loaded, kernel), as_json)
    kernels = [
        {"number": i, "kernel": k.key, "points": len(loaded.points(k)), **_widest(loaded, k)}
        for i, k in enumerate(loaded.kernels, 1)
    ]
    if as_json:
        show.emit_json({**loaded.summary(), "kernels": kernels})
        return 0
    show.line(f"{loaded.device}: {loaded.source}, {loaded.header.backend} {loaded.header.backend_version}, "
               f"{loaded.header.precision}, batch {loaded.batch}\n")  # fmt: skip
    rows = [[str(k["number"]), k["kernel"], str(k["points"]), k["at"], f"{k['ms']:.4g}"] for k in kernels]
    show.line(show.table(["no.", "kernel", "points", "widest", "ms"], rows))
    return 0


def _widest(table: LatencyTable, kernel: Kernel) -> dict[str, Any]:
    point = max(table.points(kernel), key=lambda p: (p.c_in * p.c_out, p.c_in))
    return {"at": f"{point.c_in} -> {point.c_out}", "ms": point.median_ms}


def _find(table: LatencyTable, text: str) -> Kernel:
    from halp_iee.errors import UsageError

    kernels = table.kernels
    if text.isdigit() and 1 <= int(text) <= len(kernels):
        return kernels[int(text) - 1]
    found = [k for k in kernels if k.key == text] or [k for k in kernels if text in k.key]
    if len(found) != 1:
        why = (
            f"{len(found)} of its {len(kernels)} kernels match"
            if found
            else f"none of its {len(kernels)} kernels matches"
        )
        raise UsageError(
            f"cannot tell which kernel {text!r} is", why, "give its number from `halp-iee tables show TABLE`"
        )
    return found[0]


def _staircase(table: LatencyTable, kernel: Kernel, as_json: bool) -> int:
    """Latency over output channels at the widest measured input, one bar a measured width."""
    points = table.points(kernel)
    widest = max(p.c_in for p in points)
    axis: Callable[[Any], int] = (lambda p: p.c_in) if kernel.diagonal else (lambda p: p.c_out)
    line = sorted((p for p in points if kernel.diagonal or p.c_in == widest), key=axis)
    if as_json:
        show.emit_json({"kernel": kernel.key, "points": [p.to_json() for p in points]})
        return 0
    show.line(f"{kernel.key}" + ("" if kernel.diagonal else f", {widest} input channels"))
    top = max(p.median_ms for p in line)
    for i, p in enumerate(line):
        cheaper = [q for q in line[i + 1 :] if q.median_ms < 0.98 * p.median_ms]
        note = f"  slower than {axis(cheaper[-1])} channels" if cheaper else ""
        note += f"  ({', '.join(p.flags)})" if p.flags else ""
        show.line(f"{axis(p):>6}  {p.median_ms:9.4f} ms  {'#' * max(1, round(40 * p.median_ms / top))}{note}")
    return 0


@command.command("check")
@click.argument("table", metavar="TABLE")
@options.json_flag
def check(table: str, as_json: bool) -> int:
    """Read a table to its last line and say whether it can be used."""
    from halp_iee.latency import LatencyTable

    loaded = LatencyTable.load(table)
    unstable = sum("unstable" in p.flags for k in loaded.kernels for p in loaded.points(k))
    document = {**loaded.summary(), "unstable_points": unstable}
    if as_json:
        show.emit_json(document)
        return 0
    show.line(f"{loaded.path}: sound; {len(loaded)} points of {len(loaded.kernels)} kernels, {loaded.source}, "
               f"{unstable} of them unstable")  # fmt: skip
    return 0


@command.command("merge")
@click.argument("tables", nargs=-1, required=True, metavar="TABLE TABLE...")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The table to write.")
def merge(tables: tuple[str, ...], out: Path) -> int:
    """Write one table from several of the same device."""
    from halp_iee.latency.table import find
    from halp_profiler.table import merge as merge_tables

    merged = merge_tables([find(name) for name in tables], out)
    show.line(f"{out}: {len(merged.points)} points")
    return 0


@command.command("diff")
@click.argument("first", metavar="TABLE")
@click.argument("second", metavar="TABLE")
@options.json_flag
def diff(first: str, second: str, as_json: bool) -> int:
    """Compare two tables kernel by kernel, over the points that both hold."""
    import numpy as np

    from halp_iee.latency import LatencyTable

    a, b = LatencyTable.load(first), LatencyTable.load(second)
    rows: list[dict[str, Any]] = []
    for kernel in a.kernels:
        other = {p.key: p.median_ms for p in b.points(kernel)}
        pairs = [(p.median_ms, other[p.key]) for p in a.points(kernel) if p.key in other and p.median_ms > 0]
        if pairs:
            ratios = np.array([theirs / mine for mine, theirs in pairs])
            rows.append({"kernel": kernel.key, "points": len(pairs), "median_ratio": float(np.median(ratios)),
                         "least_ratio": float(ratios.min()), "largest_ratio": float(ratios.max())})  # fmt: skip
    differs = a.header.difference(b.header)
    alone = [len(set(x.kernels) - set(y.kernels)) for x, y in ((a, b), (b, a))]
    if as_json:
        show.emit_json(
            {"header_difference": differs, "kernels": rows, "only_in_first": alone[0], "only_in_second": alone[1]}
        )
        return 0
    show.line(f"Headers: {differs or 'the same device and settings'}.")
    cells = [[r["kernel"], str(r["points"]), *(f"{r[k]:.3f}" for k in ("median_ratio", "least_ratio", "largest_ratio"))]
             for r in rows]  # fmt: skip
    show.line(show.table(["kernel", "points", "median second/first", "least", "largest"], cells))
    show.line(f"{alone[0]} kernels only in the first, {alone[1]} only in the second")
    return 0
