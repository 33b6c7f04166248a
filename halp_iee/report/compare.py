"""Several runs on one page: accuracy against measured latency, with the frontier, and a table that sorts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from halp_iee.errors import UsageError
from halp_iee.report import plots, text
from halp_iee.report.html import as_json, page, write_page
from halp_iee.report.plots import Series
from halp_iee.report.text import esc, number, section

Data = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One network on the page.

    Attributes:
        name: of the run, or of the peer.
        kind: ``run``, ``dense`` or ``peer``.
        setting: what must be the same for two latencies to be compared: device, runtime, threads, batch, data.
        latency_ms: measured; modelled where ``modelled`` says so.
        top1: share; None where it was not measured.
        frontier: whether nothing on the page is both faster and better, of the same setting.
        result: what else is known.
    """

    name: str
    kind: str
    setting: str
    latency_ms: float | None
    top1: float | None
    modelled: bool
    frontier: bool
    result: Data


def entries(runs: Mapping[str, Data], peers: Sequence[Data] = ()) -> list[Entry]:
    """The runs, the dense networks that they began with (one of each), and the peers, the frontier marked.

    Args:
        runs: name -> result document.
        peers: {name, latency_ms, top1} of networks that others made; ``setting`` as in ``setting_of`` where the runs
            are of several, else theirs.

    Raises:
        UsageError: a peer lacks its name or latency, or belongs to no setting of the runs.
    """
    found: list[Entry] = []
    dense: dict[tuple[object, ...], Entry] = {}
    for name, result in runs.items():
        setting, modelled = setting_of(result), result.get("measured_ms") is None
        slim_ms = number(result.get("predicted_ms" if modelled else "measured_ms"))
        dense_ms = number(result.get("dense_predicted_ms" if modelled else "dense_measured_ms"))
        found.append(Entry(name, "run", setting, slim_ms, number(result.get("top1")), modelled, False, result))
        if dense_ms is not None:
            best = Entry(f"{result.get('model')}, dense", "dense", setting, dense_ms, number(result.get("top1_dense")),
                         modelled, False, _dense(result))  # fmt: skip
            known = dense.get((setting, result.get("model"), modelled))
            if known is None or (known.top1 or 0) < (best.top1 or 0):
                dense[setting, result.get("model"), modelled] = best
    settings = list(dict.fromkeys(entry.setting for entry in found))
    found += [*dense.values(), *(_peer(peer, settings) for peer in peers)]
    return _with_frontier(found)


def setting_of(result: Data) -> str:
    """Device, runtime, threads, batch and data in words: latencies of two settings are never put side by side."""
    data = result.get("data")
    where = f"{result.get('device')}, {result.get('runtime')}"
    return f"{where}, threads {result.get('threads')}, batch {result.get('batch')}, {data or 'no data'}"


def _dense(result: Data) -> Data:
    keys = {"params": "params_dense", "macs": "macs_dense", "fps": "fps_dense", "train_seconds": "train_seconds_dense"}
    return {"model": result.get("model"), **{key: result.get(source) for key, source in keys.items()}}


def _peer(peer: Data, settings: Sequence[str]) -> Entry:
    latency, name = number(peer.get("latency_ms")), peer.get("name")
    setting = peer.get("setting") or (settings[0] if len(settings) == 1 else None)
    if latency is None or latency <= 0 or not isinstance(name, str) or setting not in settings:
        raise UsageError(
            f"cannot place the peer {name!r}",
            "it lacks a name or a latency_ms" if latency is None or not isinstance(name, str) else
            f"its setting is {setting!r} and the runs' are {'; '.join(settings)}",
            'write {"name": ..., "latency_ms": ..., "top1": ..., "setting": ...}, measured as the runs were',
        )  # fmt: skip
    return Entry(name, "peer", str(setting), latency, number(peer.get("top1")), False, False, peer)


def _with_frontier(found: Sequence[Entry]) -> list[Entry]:
    def beaten(one: Entry) -> bool:
        return any(
            other.setting == one.setting and other.modelled == one.modelled
            and other.latency_ms is not None and other.top1 is not None
            and other.latency_ms <= one.latency_ms and other.top1 >= one.top1  # type: ignore[operator]
            and (other.latency_ms, other.top1) != (one.latency_ms, one.top1)
            for other in found
        )  # fmt: skip

    return [
        Entry(**{**vars(one), "frontier": one.latency_ms is not None and one.top1 is not None and not beaten(one)})
        for one in found
    ]


def render(found: Sequence[Entry]) -> str:
    """The page as text.

    Raises:
        UsageError: there is no run.
    """
    runs = [one for one in found if one.kind == "run"]
    if not runs:
        raise UsageError("Cannot compare", "there is no run", "Name at least one run's directory")
    settings = dict.fromkeys(one.setting for one in found)
    body = f'<header><p class="over">halp-iee</p><h1>{len(runs)} runs compared</h1></header>'
    if len(settings) > 1:
        body += (
            '<div class="banner" role="note"><strong>Measured in different settings</strong>'
            "<p>Each has a chart and a table of its own: latencies of two devices, runtimes, batches or numbers of "
            "threads say nothing about each other.</p></div>"
        )
    for setting in settings:
        body += _of_setting(setting, [one for one in found if one.setting == setting])
    maker = f"Made by halp-iee {runs[0].result.get('version') or ''}".strip()
    document = as_json({"entries": [asdict(one) for one in found]})
    return page(f"{len(runs)} runs compared", body, maker, document)


def write(found: Sequence[Entry], path: str | os.PathLike[str]) -> Path:
    """Write the page, at once and whole.

    Raises:
        UsageError: there is no run.
        ArtifactError: the file cannot be written.
    """
    return write_page(render(found), path)


def _of_setting(setting: str, found: Sequence[Entry]) -> str:
    drawable = [one for one in found if one.latency_ms is not None and one.top1 is not None]
    missing = [one.name for one in found if one.top1 is None]
    modelled = any(one.modelled for one in found)
    lead = [one for one in drawable if one.frontier]
    series = [Series("frontier", "slim", _staircase(lead), dashed=True)] if len(lead) > 1 else []
    for kind, word, color in (("run", "runs", "slim"), ("dense", "dense", "dense"), ("peer", "peers", "grow")):
        points = [(one.latency_ms or 0.0, one.top1 or 0.0) for one in drawable if one.kind == kind]
        tips = [_tip(one) for one in drawable if one.kind == kind]
        if points:
            series.append(Series(word, color, points, tips, line=False, dots=True))
    drawn = plots.chart(
        series, x_unit="latency, modelled, ms" if modelled else "latency, measured, ms",
        y_unit="top-1 on the test set", y_format=lambda share: f"{100 * share:.4g}%", tall=True,
    )  # fmt: skip
    chart = f'<div class="panel">{drawn}</div>' if drawn else ""
    if not chart:
        return section(setting, _table(found), "No accuracy is known of these networks, so there is no frontier.")
    note = (
        f'<p class="note after">Without accuracy, in the table alone: {esc("; ".join(missing))}.</p>' if missing else ""
    )
    return section(setting, chart + note + _table(found), "On the dashed frontier nothing is both faster and better.")


def _staircase(lead: Sequence[Entry]) -> list[tuple[float, float]]:
    """The frontier as steps: up to a latency only what is at most as slow can be had."""
    ordered = sorted((one.latency_ms or 0.0, one.top1 or 0.0) for one in lead)
    steps = [ordered[0]]
    for latency, top1 in ordered[1:]:
        steps += [(latency, steps[-1][1]), (latency, top1)]
    return steps


def _tip(one: Entry) -> str:
    return f"{one.name}: {text.percent(one.top1, 2)} at {text.ms(one.latency_ms)}{', modelled' if one.modelled else ''}"


def _table(found: Sequence[Entry]) -> str:
    heads = ("network", "kind", "method", "seed", "latency", "of dense", "FPS", "top-1", "parameters", "MACs",
             "training FLOPs", "training time", "frontier")  # fmt: skip
    dense = {one.result.get("model"): one.latency_ms for one in found if one.kind == "dense"}
    body = ""
    for one in sorted(found, key=lambda e: e.latency_ms or float("inf")):
        get = one.result.get
        seed = get("seed")
        base = dense.get(get("model"))
        share = one.latency_ms / base if one.latency_ms and base else None
        ratio = number(get("train_flops_ratio"))
        cells = [
            (one.name, None), (one.kind, None), (str(get("method") or "-"), None),
            ("-" if seed is None else str(seed), seed),
            (text.ms(one.latency_ms) + (", modelled" if one.modelled else ""), one.latency_ms),
            ("-" if share is None else f"×{text.figures(share)}", share), (_or(text.fps, get("fps")), get("fps")),
            (text.percent(one.top1, 2, "-"), one.top1), (text.big(get("params"), "-"), get("params")),
            (text.big(get("macs"), "-"), get("macs")), ("-" if ratio is None else f"×{text.figures(ratio)}", ratio),
            (text.seconds(get("train_seconds"), "-"), get("train_seconds")), ("yes" if one.frontier else "", None),
        ]  # fmt: skip
        body += f"<tr>{''.join(_cell(shown, value) for shown, value in cells)}</tr>"
    head = "".join(f"<th>{name}</th>" for name in heads)
    table = f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll after">{table}</div>'


def _cell(shown: str, value: object) -> str:
    exact = number(value)
    return f"<td>{esc(shown)}</td>" if exact is None else f'<td data-value="{exact!r}">{esc(shown)}</td>'


def _or(form: Any, value: object) -> str:
    return "-" if number(value) is None else str(form(value))
