"""How results look on stdout."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import click


class Command(click.Command):
    """A command that runs a person's own code, whose prints go to stderr: stdout is for results alone."""

    def invoke(self, ctx: click.Context) -> Any:
        ctx.obj = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):
            return super().invoke(ctx)


def line(text: Any) -> None:
    """Print a result, on the stdout that the command was called with."""
    click.echo(text, file=click.get_current_context().obj)


def emit_json(document: Any) -> None:
    """Exactly one JSON document on stdout."""
    line(json.dumps(document, indent=1, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Write a file at once and whole.

    Raises:
        ArtifactError: it cannot be written.
    """
    from halp_iee.errors import ArtifactError
    from halp_profiler.files import whole

    try:
        with whole(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ArtifactError(
            f"cannot write {path}", (error.strerror or str(error)).lower(), "choose a folder that can be written to"
        ) from error


def table(headers: list[str], rows: list[list[str]]) -> str:
    """A plain table; columns of words are flush left, those of figures flush right."""
    figures = [any(r[i][:1].isdigit() for r in rows) for i in range(len(headers))]
    widths = [max(len(r[i]) for r in [headers, *rows]) for i in range(len(headers))]

    def aligned(row: list[str]) -> str:
        cells = (c.rjust(w) if f else c.ljust(w) for f, c, w in zip(figures, row, widths, strict=True))
        return "  ".join(cells).rstrip()

    return "\n".join([aligned(headers), "  ".join("-" * w for w in widths), *(aligned(r) for r in rows)])


def count(value: float | None) -> str:
    """12345678 as 12.35 M."""
    if value is None:
        return "-"
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.2f} {letter}"
    return f"{value:.0f}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g} ms"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}%"


def _fps(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _ratio(slim: float | None, dense: float | None) -> str:
    return "" if not slim or not dense else f"x{slim / dense:.3g}"


def side_by_side(r: dict[str, Any]) -> str:
    """Dense and slim side by side, from a result document."""
    word = ", modelled" if r["source"] == "modelled" else ", predicted"
    rows = [
        ["top-1 on the test set", _percent(r["top1_dense"]), _percent(r["top1"]), _points(r["top1"], r["top1_dense"])],
        ["latency" + word, _ms(r["dense_predicted_ms"]), _ms(r["predicted_ms"]),
         _ratio(r["predicted_ms"], r["dense_predicted_ms"])],
        ["latency, measured", _ms(r["dense_measured_ms"]), _ms(r["measured_ms"]),
         _ratio(r["measured_ms"], r["dense_measured_ms"])],
        ["frames a second" + ("" if r["measured_ms"] is not None else word), _fps(r["fps_dense"]), _fps(r["fps"]),
         _ratio(r["fps"], r["fps_dense"])],
        ["parameters", count(r["params_dense"]), count(r["params"]), _ratio(r["params"], r["params_dense"])],
        ["MACs", count(r["macs_dense"]), count(r["macs"]), _ratio(r["macs"], r["macs_dense"])],
    ]  # fmt: skip
    if r["train_flops_ratio"] is not None:
        seconds = (r["train_seconds_dense"], r["train_seconds"])
        rows.append(["training FLOPs", "x1", f"x{r['train_flops_ratio']:.3g}", f"x{r['train_flops_ratio']:.3g}"])
        if all(seconds):
            rows.append(["training seconds", *(f"{s:.0f} s" for s in seconds), _ratio(seconds[1], seconds[0])])
    return table(["", "dense", "slim", "slim/dense"], rows)


def _points(slim: float | None, dense: float | None) -> str:
    return "" if slim is None or dense is None else f"{100 * (slim - dense):+.2f} points"


def verdict(r: dict[str, Any]) -> str:
    """Whether the target was met, in one line, naming what was measured and what was not."""
    asked = f"asked for {r['target_ms']:.4g} ms"
    if r["measured_ms"] is None:
        word = "modelled" if r["source"] == "modelled" else "predicted"
        return f"{asked}, {word} {r['predicted_ms']:.4g} ms: NOT measured, since no network was timed on {r['device']}."
    share = r["measured_ms"] / r["target_ms"]
    if share <= 1:
        return f"{asked}, measured {r['measured_ms']:.4g} ms: met ({share:.1%} of the target)."
    return f"{asked}, measured {r['measured_ms']:.4g} ms: MISSED by {share - 1:.1%}."


def finished(result: dict[str, Any], as_json: bool) -> int:
    """Print the end of a run; the exit code says whether the target was met as measured."""
    if as_json:
        emit_json(result)
    else:
        line(f"{result['model']} on {result['data'] or 'no data'}, {result['method']}, "
                   f"{result['device']}, {result['runtime']}\n")  # fmt: skip
        line(side_by_side(result))
        line(f"\n{verdict(result)}")
        for name in ("artifact", "onnx", "report"):
            if result.get(name):
                line(f"{name:<9}{result[name]}")
    missed = result["measured_ms"] is not None and result["measured_ms"] > result["target_ms"]
    return 4 if missed else 0
