"""The top of the page: what came out, whether it is what was asked for, dense and slim side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halp_iee.report import text
from halp_iee.report.text import ABSENT, esc, number, section

Data = Mapping[str, Any]
_DRIFT = 0.2
"""A calibrated prediction this far from the same network's measurement tells of the machine, not of the table."""


def heading(result: Data) -> str:
    """What came out, as one sentence, and whether that is what was asked for."""
    over = " · ".join(
        str(part)
        for part in (
            result.get("model"),
            f"data: {result['data']}" if result.get("data") else None,
            str(result["method"]).upper() if result.get("method") else None,
            result.get("device"),
            f"seed {result['seed']}" if result.get("seed") is not None else None,
        )
        if part
    )
    return f'<header><p class="over">{esc(over)}</p><h1>{esc(_sentence(result))}</h1>{_verdict(result)}</header>'


def _sentence(result: Data) -> str:
    model = result.get("model") or "The network"
    measured, dense = number(result.get("measured_ms")), number(result.get("dense_ms"))
    if measured is not None and measured > 0:
        if dense is None:
            return f"{model} runs in {text.ms(measured)}, measured"
        factor = f", {text.figures(dense / measured, 2)} times as fast" if measured < dense else ""
        return f"{model} runs in {text.ms(measured)} instead of {text.ms(dense)}{factor}"
    predicted = number(result.get("predicted_ms"))
    if predicted is None:
        return f"{model}: no latency is known yet"
    word = "modelled" if result.get("source") == "modelled" else "predicted"
    return f"{model} is {word} at {text.ms(predicted)} instead of {text.ms(dense, 'an unknown latency')}; not measured"


def _verdict(result: Data) -> str:
    target, measured = number(result.get("target_ms")), number(result.get("measured_ms"))
    if target is None or target <= 0:
        return ""
    if measured is None:
        return f'<span class="pill">Asked for {text.ms(target)}: not measured</span>'
    share = measured / target
    if share <= 1:
        return f'<span class="pill good">Target of {text.ms(target)} met, as measured: {share:.1%} of it</span>'
    return f'<span class="pill bad">Target of {text.ms(target)} missed by {share - 1:.1%}, as measured</span>'


def banners(result: Data, table: Data) -> str:
    """What a reader must know before believing a number."""
    found = ""
    if "modelled" in (result.get("source"), table.get("source")):
        device = result.get("device") or table.get("device") or "the device"
        found += _banner(
            "Modelled, not measured",
            f"{device} was not attached. Its latency table was computed from the device's datasheet; no latency "
            "predicted from it was timed. Profile on the device itself before relying on these figures.",
        )
    if result.get("unstable") is True:
        found += _banner(
            "The measurement was unsteady",
            "The spread of the timings stayed too wide after repeats: other work was running on the machine. "
            "Measure again on a quiet one.",
        )
    predicted, measured = number(result.get("dense_predicted_ms")), number(result.get("dense_measured_ms"))
    if result.get("source") == "measured" and predicted and measured and abs(predicted / measured - 1) > _DRIFT:
        found += _banner(
            "The machine changed its pace during the run",
            f"The dense network was predicted at {text.ms(predicted)}, calibrated against whole networks timed at the "
            f"beginning, and measured at {text.ms(measured)} at the end. What is measured was timed at the end, dense "
            "and slim in turn, and stands; what is predicted is off. Run the job again on a quiet machine.",
        )
    return found


def _banner(title: str, body: str) -> str:
    return f'<div class="banner" role="note"><strong>{esc(title)}</strong><p>{esc(body)}</p></div>'


def cards(result: Data) -> str:
    predicted_word = "modelled" if result.get("source") == "modelled" else "predicted"
    macs, params = result.get("macs"), result.get("params")
    latency = number(result.get("measured_ms"))
    return (
        '<section class="cards">'
        + _card(
            "Latency, measured",
            text.ms(latency),
            latency is not None,
            [
                ("asked", text.ms(result.get("target_ms"), "-")),
                (predicted_word, text.ms(result.get("predicted_ms"), "-")),
                ("measured", text.ms(latency)),
            ],
        )
        + _accuracy_card(result)
        + _card(
            "Parameters",
            text.big(params, "not counted"),
            number(params) is not None,
            [
                ("of the dense", _share(params, result.get("params_dense"))),
                ("MACs", text.big(macs, "not counted")),
                ("of the dense", _share(macs, result.get("macs_dense"))),
            ],
        )
        + _training_card(result)
        + "</section>"
    )


def _accuracy_card(result: Data) -> str:
    top1, dense = result.get("top1"), result.get("top1_dense")
    if number(top1) is None and number(dense) is None and not result.get("data"):
        return _card("Top-1 accuracy", "no data given", False, [])
    lines = [
        ("dense", text.percent(dense, 2)),
        ("slim", text.percent(top1, 2)),
        ("difference", text.points(top1, dense)),
    ]
    return _card("Top-1 accuracy", text.percent(top1, 2), number(top1) is not None, lines)


def _training_card(result: Data) -> str:
    ratio = number(result.get("train_flops_ratio"))
    whole_run = ("whole run", text.seconds(result.get("wall_seconds"), "-"))
    slim_s, dense_s = result.get("train_seconds"), result.get("train_seconds_dense")
    if ratio is None and number(slim_s) is None and number(dense_s) is None and result.get("method") == "one-shot":
        return _card("Training", "none, pruned in one step", False, [whole_run])
    figure = ABSENT if ratio is None else f"×{text.figures(ratio)} <small>of dense</small>"
    lines = [("slim, in time", text.seconds(slim_s, "-")), ("dense, in time", text.seconds(dense_s, "-")), whole_run]
    return _card("Training FLOPs", figure, ratio is not None, lines)


def _card(label: str, figure: str, known: bool, lines: Sequence[tuple[str, str]]) -> str:
    """``figure`` is HTML of ours; the lines are escaped."""
    inner = "".join(f"<dt>{esc(name)}</dt><dd>{esc(value)}</dd>" for name, value in lines)
    return (
        f'<div class="card"><p class="label">{esc(label)}</p>'
        f'<p class="big{"" if known else " none"}">{figure}</p><dl>{inner}</dl></div>'
    )


def _share(after: object, before: object) -> str:
    a, b = number(after), number(before)
    return "-" if a is None or not b else f"{a / b:.1%}"


def side_by_side(result: Data) -> str:
    get = result.get
    predicted = "modelled" if get("source") == "modelled" else "predicted"
    dense_measured = get("dense_measured_ms", get("dense_ms") if number(get("measured_ms")) is not None else None)
    lines = [
        (f"Latency, {predicted}", get("dense_predicted_ms"), get("predicted_ms"), text.ms),
        ("Latency, measured", dense_measured, get("measured_ms"), text.ms),
        ("Frames a second", get("fps_dense"), get("fps"), text.fps),
        ("Top-1 accuracy", get("top1_dense"), get("top1"), lambda value: text.percent(value, 2)),
        ("Parameters", get("params_dense"), get("params"), text.big),
        ("MACs", get("macs_dense"), get("macs"), text.big),
        ("FLOPs (2 a MAC)", _twice(get("macs_dense")), _twice(get("macs")), text.big),
        ("Training time", get("train_seconds_dense"), get("train_seconds"), text.seconds),
    ]
    body = ""
    for label, dense, slim, form in lines:
        if number(dense) is None and number(slim) is None:
            continue
        change = text.points(slim, dense) if label.startswith("Top-1") else text.times(slim, dense)
        body += f'<tr><td>{label}</td><td>{form(dense)}</td><td class="slim">{form(slim)}</td><td>{change}</td></tr>'
    ratio = number(get("train_flops_ratio"))
    if ratio is not None:
        factor = f"×{text.figures(ratio)}"
        body += f'<tr><td>Training FLOPs</td><td>×1</td><td class="slim">{factor}</td><td>{factor}</td></tr>'
    if not body:
        return ""
    head = "<thead><tr><th></th><th>dense</th><th>slim</th><th>change</th></tr></thead>"
    note = ""
    if number(get("measured_ms")) is None and number(get("fps")) is not None:
        note = f'<p class="note after">Frames a second follow from the {predicted} latency.</p>'
    table = f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>{note}'
    return section("Dense and slim, side by side", table)


def _twice(value: object) -> float | None:
    found = number(value)
    return None if found is None else 2 * found
