"""How the masks of sparse trainings change, as charts: IoU, survival, exploration rate and sparsity by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import halp_iee
from halp_iee.report import plots
from halp_iee.report.html import as_json, page, write_page
from halp_iee.report.plots import Series
from halp_iee.report.text import esc, facts, section

Events = Sequence[Mapping[str, Any]]
_COLORS = ("slim", "prune", "grow", "dense")
_MOST = len(_COLORS)
_UPDATES = ("start", "update", "prune", "grow")


def write_sparse_page(
    runs: Mapping[str, Events], path: Path, *, title: str, about: Sequence[tuple[str, object]], document: Any,
    note: str = "",
) -> Path:  # fmt: skip
    """One page for one run, or for several methods beside one another.

    Args:
        runs: name -> the events of `SparseMethod` (`event` or `kind`, `step_of_method`, `iou`, `survival`,
            `exploration_rate`, `sparsity_by_layer`), in order; at most four.
        path: the file.
        title: of the page.
        about: names and values above the charts.
        document: what programs read out of the page.
        note: a line of explanation.

    Raises:
        ArtifactError: the file cannot be written.
    """
    shown = {name: _updates(events) for name, events in list(runs.items())[:_MOST]}
    bodies = (f"<h1>{esc(title)}</h1>", section("In short", facts(about), note), dynamics(shown), layers(shown))
    body = "\n".join(part for part in bodies if part)
    return write_page(page(title, body, f"halp-iee {halp_iee.__version__}", as_json(document)), path)


def dynamics(runs: Mapping[str, Events]) -> str:
    """IoU, survival rate and ITOP's exploration rate over the steps of training.

    Source: IEE, figure 5; Liu et al. 2021 (ITOP), section 3.1.
    """
    charts = (
        ("IoU of the structure after an update with the one before", "iou", ("update", "grow")),
        ("Survival: share of the grown weights that the next prune spares", "survival", _UPDATES),
        ("Exploration rate: share of all weights that have ever lived", "exploration_rate", _UPDATES),
    )
    panels = ""
    for heading, key, kinds in charts:
        lines = [
            Series(name, color, [(float(e["step_of_method"]), float(e[key])) for e in _of(events, kinds, key)])
            for (name, events), color in zip(runs.items(), _COLORS, strict=False)
        ]
        drawn = plots.chart(lines, x_unit="training step", y_format=lambda v: f"{100 * v:g}%", y_from_zero=True)
        panels += f'<div class="panel"><h3>{esc(heading)}</h3>{drawn}</div>' if drawn else ""
    return section("How the masks change", f'<div class="pair">{panels}</div>' if panels else "")


def layers(runs: Mapping[str, Events]) -> str:
    """The sparsity of every layer at the end."""
    last = {name: dict(events[-1]["sparsity_by_layer"]) for name, events in runs.items() if events}
    names = list(dict.fromkeys(layer for of in last.values() for layer in of))
    if not names:
        return ""
    head = "".join(f"<th>{esc(name)}</th>" for name in last)
    rows = "".join(
        f"<tr><td>{esc(layer)}</td>"
        + "".join(f"<td>{100 * of[layer]:.2f}%</td>" if layer in of else "<td>dense</td>" for of in last.values())
        + "</tr>"
        for layer in names
    )
    table = f"<table><thead><tr><th>layer</th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return section("Sparsity by layer", f'<div class="panel">{table}</div>', "At the end of the training.")


def _updates(events: Events) -> list[Mapping[str, Any]]:
    return [e for e in events if _kind(e) in _UPDATES and "step_of_method" in e]


def _of(events: Events, kinds: Sequence[str], key: str) -> list[Mapping[str, Any]]:
    return [e for e in events if _kind(e) in kinds and e.get(key) is not None]


def _kind(event: Mapping[str, Any]) -> str:
    return str(event.get("event", event.get("kind", "")))
