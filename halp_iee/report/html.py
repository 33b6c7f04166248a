"""One self-contained HTML file of a run: no network access, light and dark, phone, screen and print."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halp_iee.errors import ArtifactError, UsageError
from halp_iee.report import device, evidence, summary, training
from halp_iee.report.text import esc, mapping
from halp_profiler.files import whole

# Whatever a run's strings might hold, the page loads nothing and talks to nobody.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write(data: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the report of a run.

    Args:
        data: ``result``, the document that ``train`` and ``prune`` print; and, as far as known,
            ``layers`` [{name, dense_ms, slim_ms}], ``fixed_ms``,
            ``groups`` [{name, size, kept, prunable, reason, steps}], steps being widths just under a step of the
            device, ``staircases`` [{name, c_in, widths, ms, dense, chosen}],
            ``calibration`` [{predicted_ms, measured_ms, before_ms}],
            ``events`` [{kind: epoch, epoch, loss, test_top1, lr, phase} and
            {kind: start, prune, grow or settle, step, latency_ms, iou, survival}],
            ``exports``, the records of ``halp_iee.export.deploy``,
            ``table`` {device, source, points, held_out_error}, ``environment`` {name: value},
            ``reproduce``, a command line. Top-1 and the errors are shares between 0 and 1. What is missing
            or no number reads "not measured".
        path: the file; replaced at once and whole.

    Returns:
        The path.

    Raises:
        UsageError: ``data`` holds no result.
        ArtifactError: the file cannot be written.
    """
    return write_page(render(data), path)


def write_page(source: str, path: str | os.PathLike[str]) -> Path:
    """Write a page, at once and whole.

    Raises:
        ArtifactError: the file cannot be written.
    """
    target = Path(path)
    try:
        with whole(target) as partial:
            partial.write_text(source, encoding="utf-8", errors="replace")
    except OSError as error:
        raise ArtifactError(
            f"Cannot write the report {target}",
            (error.strerror or str(error)).lower(),
            "Choose a file in a folder that exists and that you may write to",
        ) from error
    return target


def render(data: Mapping[str, Any]) -> str:
    """The page as text.

    Raises:
        UsageError: ``data`` holds no result.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("result"), Mapping):
        raise UsageError("Cannot make a report", "there is no result in it", "Pass {'result': {...}}")
    result = mapping(data["result"])
    body = "\n".join(
        part
        for part in (
            summary.banners(result, mapping(data.get("table"))),
            summary.heading(result),
            summary.cards(result),
            summary.side_by_side(result),
            evidence.layers(data),
            evidence.widths(data),
            device.staircases(data),
            evidence.calibration(data),
            evidence.prune_and_grow(data),
            evidence.learning(data),
            training.cost(data),
            device.exports(data),
            evidence.environment(data),
            evidence.reproduce(data),
        )
        if part
    )
    title = f"{result.get('model') or 'A network'}: latency report"
    maker = f"Made by halp-iee {result.get('version') or ''}".strip()
    return page(title, body, maker, as_json(result))


def page(title: str, body: str, maker: str, document: str) -> str:
    """A whole page around a body; ``document`` is JSON for programs that read it."""
    here = Path(__file__).parent
    style = (here / "report.css").read_text(encoding="utf-8")
    script = "".join((here / name).read_text(encoding="utf-8") for name in ("tip.js", "sort.js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(title)}</title><style>\n{style}</style></head>\n<body><main>\n{body}\n"
        f"<footer>{esc(maker)}. Measured means timed on the device, predicted means summed "
        "from its latency table, modelled means computed from a datasheet.</footer></main>\n"
        '<div id="tip" role="tooltip" hidden></div>'
        f'<script type="application/json" id="result">{document}</script>'
        f"<script>\n{script}</script></body></html>\n"
    )


def as_json(result: Mapping[str, Any]) -> str:
    """The result for programs that read the page; no text in it can end the element that holds it."""
    dumped = json.dumps(_finite(result), default=str, ensure_ascii=True)
    return dumped.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    """JSON knows no NaN: what is not finite becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
