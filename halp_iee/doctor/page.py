"""Self-contained pages of a diagnosis and of a frontier: no network access, light and dark."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import halp_iee.report
from halp_iee.doctor.diagnosis import Diagnosis
from halp_iee.doctor.words import headline, sentences
from halp_iee.errors import ArtifactError
from halp_iee.report.plots import Series, bar_row, chart, legend
from halp_iee.report.text import esc, ms, percent

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_ROWS = 40


def write_page(path: Path, title: str, body: str) -> Path:
    """Write one page, at once and whole. Raises ArtifactError where it cannot be written."""
    here = Path(halp_iee.report.__path__[0])
    style = (here / "report.css").read_text(encoding="utf-8")
    script = (here / "tip.js").read_text(encoding="utf-8")
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(title)}</title><style>\n{style}</style></head>\n<body><main>\n<header><h1>{esc(title)}</h1>"
        f"</header>\n{body}\n<footer>Made by halp-iee. Latencies are predicted: summed from a table.</footer>"
        f'</main>\n<div id="tip" role="tooltip" hidden></div><script>\n{script}</script></body></html>\n'
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8", errors="replace")
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(
            f"Cannot write the page {path}",
            (error.strerror or str(error)).lower(),
            "Choose a file in a folder that exists and that you may write to",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def write_diagnosis(path: Path, model: str, found: Diagnosis, curves: Mapping[str, Sequence[float]]) -> Path:
    """The page of a diagnosis; ``curves`` are latencies in ms at 1, 2, ... units of the groups to be drawn."""
    parts = [f"<p>{esc(line)}</p>" for line in sentences(model, found)]
    scale = max((row.dense_ms for row in found.layers), default=1.0)
    chosen = found.latency_ms is not None
    keys = [("dense", "dense", False), *([("at the target", "slim", False)] if chosen else [])]
    rows = "".join(
        bar_row(
            row.name, row.dense_ms / scale, (row.chosen_ms or 0.0) / scale,
            esc(ms(row.dense_ms) + (f" to {ms(row.chosen_ms)}" if row.chosen_ms is not None else "")),
            tip=f"{row.kernel}: {row.c_in} to {row.c_out} channels, {percent(row.share)} of the dense latency",
        )
        for row in found.layers[:_ROWS]
    )  # fmt: skip
    cut = f"<p>The {_ROWS} slowest of {len(found.layers)} layers.</p>" if len(found.layers) > _ROWS else ""
    parts.append(f'<h2>Where the time goes</h2>{cut}{legend(keys)}<div class="rows">{rows}</div>')
    for group, curve in curves.items():
        points = [(float(k + 1), float(value)) for k, value in enumerate(curve)]
        drawn = chart([Series("layers it touches", "slim", points)], x_unit=f"units kept of {group}", y_unit="ms")
        parts.append(f"<h2>The staircase of {esc(group)}</h2>{drawn}")
    return write_page(path, headline(model, found), "\n".join(parts))


def write_frontier(path: Path, title: str, note: str, dense_ms: float, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The page of a frontier: rows with ``latency_ms``, ``importance`` (a share) and ``gap``."""
    points = [(float(r["latency_ms"]), 100.0 * float(r["importance"])) for r in rows]
    best = [(x, min(100.0, y / max(1e-9, 1.0 - float(r["gap"])))) for (x, y), r in zip(points, rows, strict=True)]
    tips = [
        f"{y:.1f}% of the importance in {ms(x)}, {percent(x / dense_ms)} of dense; gap {percent(r['gap'], 3)}"
        for (x, y), r in zip(points, rows, strict=True)
    ]
    drawn = chart(
        [Series("found", "slim", points, tips, dots=True), Series("none can be above", "prune", best, dashed=True)],
        x_unit="ms", y_unit="importance kept, %", y_from_zero=True, tall=True,
    )  # fmt: skip
    cells = "".join(
        f"<tr><td>{ms(r['latency_ms'])}</td><td>{percent(r['latency_ms'] / dense_ms)}</td>"
        f"<td>{percent(r['importance'])}</td><td>{percent(r['gap'], 3)}</td></tr>"
        for r in rows
    )
    head = "<tr><th>latency</th><th>of dense</th><th>importance kept</th><th>gap at most</th></tr>"
    return write_page(
        path, title, f"<p>{esc(note)}</p>{drawn}<table><thead>{head}</thead><tbody>{cells}</tbody></table>"
    )
