"""`halp-iee tables`: what latency tables there are, and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from halp_iee.cli import options, show

if TYPE_CHECKING:
    from halp_iee.latency import LatencyTable
    from halp_profiler.kernel import Kernel


_FLAGS = {
    "held_out": "measured to judge the table, and no part of it",
    "unstable": "measured again and still unsteady",
    "disturbed": "a reference beside it was slower than usual",
    "busy": "another process had the device",
    "throttled": "the GPU was kept under its clock",
    "builds_differ": "several builds of it differ in latency",
}
"""What a point's flags mean."""


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
@click.option(
    "--axis",
    type=click.Choice(["in", "out"]),
    default=None,
    help="Channels along which the staircase runs.  [default: out, where the kernel has both]",
)
@click.option(
    "--at",
    "other",
    type=click.IntRange(1),
    default=None,
    metavar="CHANNELS",
    help="Channels on the other axis.  [default: the most]",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Write the staircases as one page, of all kernels when none is named.",
)
@options.json_flag
def show_(
    table: str, kernel: str | None, axis: str | None, other: int | None, html: Path | None, as_json: bool
) -> int:  # fmt: skip
    """Show what a table holds; with a KERNEL (its number or part of its key), draw the staircase of that one and say
    which channel counts the device likes and which are traps."""
    from halp_iee.latency import LatencyTable

    loaded = LatencyTable.load(table)
    chosen = None if kernel is None else _find(loaded, kernel)
    if html is not None:
        return _page(loaded, chosen, html, as_json)
    if chosen is not None:
        return _staircase(loaded, chosen, axis, other, as_json)
    kernels = [
        {"number": i, "kernel": k.key, "points": len(loaded.points(k)), **_widest(loaded, k)}
        for i, k in enumerate(loaded.kernels, 1)
    ]
    if as_json:
        show.emit_json({**loaded.summary(), "kernels": kernels})
        return 0
    show.line(f"{loaded.device}: {loaded.source}, {loaded.header.backend} {loaded.header.backend_version}, "
               f"{loaded.header.precision}, {loaded.header.layout}, batch {loaded.batch}\n")  # fmt: skip
    rows = [[str(k["number"]), k["kernel"], str(k["points"]), k["at"], f"{k['ms']:.4g}"] for k in kernels]
    show.line(show.table(["no.", "kernel", "points", "widest", "ms"], rows))
    return 0


def _page(table: LatencyTable, kernel: Kernel | None, path: Path, as_json: bool) -> int:
    from halp_iee.report import staircase

    kernels = [kernel] if kernel else sorted(table.kernels, key=lambda k: -float(_widest(table, k)["ms"]))
    show.write_text(path, staircase.render(table, kernels))
    if as_json:
        show.emit_json({"page": str(path), "kernels": len(kernels)})
    else:
        show.line(f"{path}: the staircases of {len(kernels)} kernel{'s' if len(kernels) != 1 else ''}")
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


def _staircase(table: LatencyTable, kernel: Kernel, axis: str | None, other: int | None, as_json: bool) -> int:
    """Latency along one axis, one bar a measured width, and what follows from it."""
    from halp_iee.report.staircase import advice, shape
    from halp_profiler.staircase import held_out, staircase, width_of

    line = staircase(table.surface(kernel), table.points(kernel), axis or ("in" if kernel.diagonal else "out"), other)
    if as_json:
        show.emit_json({"kernel": kernel.key, **line.to_json()})
        return 0
    side = {"in": "input", "out": "output"}
    fixed = "" if line.other is None else f", {line.other} {side['out' if line.axis == 'in' else 'in']} channels"
    show.line(f"{kernel.key}{fixed}; {side[line.axis]} channels, {table.source}\n")
    at = dict(zip(line.widths.tolist(), line.ms.tolist(), strict=True))
    seen = {width_of(p, line.axis): p for p in line.points if not held_out(p)}
    shown = sorted({*seen, *(w for w in line.likes if w in at)})
    top = max(at[w] for w in shown)
    for w in shown:
        trap = next((t for t in line.traps if t.low <= w <= t.high), None)
        note = f"  trap: {'slower' if trap.reason == 'slower' else 'a step more'} than {trap.better}" if trap else ""
        note = note or ("  liked" if w in line.likes and len(line.likes) > 1 else "")
        flags = seen[w].flags if w in seen else ()
        note += f"  ({', '.join(flags)})" if flags else "" if w in seen else "  (interpolated)"
        show.line(f"{w:>6}  {at[w]:9.4f} ms  {'#' * max(1, round(40 * at[w] / top)):<40}{note}".rstrip())
    likes, traps = advice(line)
    show.line(f"\nLikes: {likes}" if likes else f"\n{shape(line)}")
    if traps:
        show.line(f"Traps: {traps}")
    return 0


@command.command("check")
@click.argument("table", metavar="TABLE")
@options.json_flag
def check(table: str, as_json: bool) -> int:
    """Read a table to its last line and say whether it can be used."""
    from halp_iee.latency import LatencyTable

    loaded = LatencyTable.load(table)
    flags: dict[str, int] = {}
    for point in (p for k in loaded.kernels for p in loaded.points(k)):
        for flag in point.flags:
            flags[flag] = flags.get(flag, 0) + 1
    document = {**loaded.summary(), "unstable_points": flags.get("unstable", 0), "flags": flags}
    if as_json:
        show.emit_json(document)
        return 0
    show.line(f"{loaded.path}: sound; {len(loaded)} points of {len(loaded.kernels)} kernels, {loaded.source}")
    for flag, number in sorted(flags.items(), key=lambda item: -item[1]):
        show.line(f"  {number} {flag}: {_FLAGS.get(flag, 'as the backend noted')}")
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
