"""Write docs/results/graph_coverage.md from what `bench_graph.py` measured."""

from __future__ import annotations

import collections
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

OUTSIDE = ("network output", "its channels can only be removed all together")
"""Reasons that are no shortcoming: what the network promises to those who call it."""


NOT_PRUNABLE = {
    "convit": "one position weight a head; the channels inside the heads are free",
    "byobnet": "weights of a 1-D convolution that slides over the channels",
    "efficientformer_v2": "one weight a head; the channels inside the heads are free",
    "mlp_mixer": "as many as there are tokens; the hidden layer of the token mixing is free",
    "swin_transformer_v2": "one bias a head; the channels inside the heads are free",
    "swin_transformer_v2_cr": "one bias a head; the channels inside the heads are free",
    "volo": "weights of an outlook, over whose places a softmax runs",
}
"""Families whose frozen groups nobody would call prunable, and why; those of any other family count as a shortfall."""


def frozen(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The frozen groups of a model, without its outputs."""
    return [group for group in row.get("frozen", []) if not str(group["reason"]).startswith(OUTSIDE)]


def _short(reason: str) -> str:
    """A reason without what differs from place to place."""
    return re.sub(r"\s*\(.*", "", reason)


def _reasons(row: dict[str, Any]) -> str:
    counted = collections.Counter(_short(group["reason"]) for group in frozen(row))
    return "; ".join(f"{count} {reason}" for reason, count in counted.most_common(3)).replace("|", "/")


def _geometric(ratios: Iterable[float]) -> float:
    found = [math.log(ratio) for ratio in ratios if ratio > 0]
    return math.exp(sum(found) / len(found)) if found else math.nan


WHOLE = " [the full network: "


def _refused_whole(row: dict[str, Any]) -> bool:
    """Whether the exporter refuses the network before slimming, too."""
    _, found, whole = str(row.get("export", "ok")).partition(WHOLE)
    return bool(found) and not whole.startswith("ok")


def _refusal(row: dict[str, Any]) -> str:
    slim, _, whole = str(row["export"]).partition(WHOLE)
    if not whole:
        return slim[:250]
    return f"{slim[:250]} The full network: {'exported' if whole.startswith('ok') else 'refused as well'}."


def _summary(rows: list[dict[str, Any]]) -> list[str]:
    good = [row for row in rows if not row.get("error")]
    whole = [row for row in good if not frozen(row)]
    exported = [row for row in rows if "export" in row]
    families = len({row["family"] for row in rows if "family" in row})
    reach = sorted(row["prunable_share"] for row in good if "prunable_share" in row)
    lines = [
        f"- {len(rows)} models{f' of {families} families' if families else ''} tried, {len(good)} traced, slimmed "
        "twice, proved equal to their masked selves, "
        f"trained a step, saved and reloaded; {len(rows) - len(good)} failed.",
        f"- {len(whole)} have nothing frozen but their outputs; {len(good) - len(whole)} have frozen groups, listed.",
    ]
    if reach:
        lines.append(
            f"- Share of the parameters that prunable groups reach: median {reach[len(reach) // 2]:.1%}, "
            f"least {reach[0]:.1%}; {sum(share < 0.5 for share in reach)} models below one half."
        )
    if exported:
        fine = sum(row["export"] == "ok" for row in exported)
        both = sum(_refused_whole(row) for row in exported)
        lines.append(
            f"- {len(exported)} given to the ONNX exporter after slimming: {fine} passed the parity gate; of the other "
            f"{len(exported) - fine} the exporter refuses the full network as well in {both}."
        )
    return lines


def _families(rows: list[dict[str, Any]]) -> list[str]:
    """The bar of the families: the share without a frozen group that a person would call prunable."""
    families = {row["family"] for row in rows}
    held = {row["family"] for row in rows if frozen(row)}
    failed = {row["family"] for row in rows if row.get("error")}
    short = (held - NOT_PRUNABLE.keys()) | failed
    named = f" ({', '.join(sorted(short))})" if short else ""
    share = 1 - len(short) / len(families)
    lines = [
        f"- Of {len(families)} families, {len(families - short)} ({share:.1%}) have no failure and "
        f"no frozen group that a person would call prunable; {len(short)} do{named}. Frozen, and judged not to be "
        "prunable:"
    ]
    lines += [f"  - {name}: {NOT_PRUNABLE[name]}" for name in sorted(held & NOT_PRUNABLE.keys())]
    return lines


def _peer(rows: list[dict[str, Any]]) -> list[str]:
    beside = [row for row in rows if "peer" in row]
    if not beside:
        return []
    both = [row for row in beside if row["peer"] == "ok" and not row.get("error")]
    ours = sum(not row.get("error") for row in beside)
    ratio = _geometric(
        (row["trace_seconds"] + row["slim_seconds"]) / (row["peer_analyse_seconds"] + row["peer_prune_seconds"])
        for row in both
    )
    lines = [
        "## Beside Torch-Pruning",
        "",
        f"{len(beside)} models in the same run: here {ours} pass, there {sum(r['peer'] == 'ok' for r in beside)}. "
        f"Seconds to analyse and prune, geometric mean over the {len(both)} that pass in both: {ratio:.2f} times "
        "those of Torch-Pruning; here they contain the proof (four forward passes).",
        "",
        "| model | trace s | slim and prove s | peer analyse s | peer prune s | peer |",
        "| --- | --: | --: | --: | --: | --- |",
    ]
    for row in beside:
        peer = str(row["peer"])[:80].replace("|", "/").replace("\n", " ")
        cells = [
            row.get(key, "-") for key in ("trace_seconds", "slim_seconds", "peer_analyse_seconds", "peer_prune_seconds")
        ]
        lines.append(f"| {row['name']} | " + " | ".join(str(cell) for cell in cells) + f" | {peer} |")
    return [*lines, ""]


def render(rows: list[dict[str, Any]], note: str = "") -> str:
    """The page as text, with a note on how the rows were gathered."""
    machine = rows[-1].get("machine", {}) if rows else {}
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    lines = [
        "# What the channel graph covers",
        "",
        "Measured by `tools/bench_graph.py`: random weights, the smallest inputs that a model takes, half of every "
        "group and two random subsets. Checks: `half` and `random` mean that the slim network equals its masked self "
        "on the example inputs and on random ones, `reload` that a saved and loaded copy gives the same results, "
        "`export` that the ONNX file passed the parity gate, `train` one step of SGD in train mode. Frozen groups are "
        "those that stay whole for another reason than being the network's output or a single unit.",
        "",
        f"Machine: {machine.get('cpu', '?')}, {machine.get('cores', '?')} cores shared with other work, one thread; "
        f"{versions}. Seconds are therefore coarse.",
        "",
        *([note, ""] if note else []),
    ]
    for suite in dict.fromkeys(row["suite"] for row in rows):
        mine = [row for row in rows if row["suite"] == suite]
        lines += [f"## {suite}", "", *_summary(mine), *(_families(mine) if suite == "timm" else []), ""]
        failed = [row for row in mine if row.get("error")]
        if failed:
            lines += ["Failures:", ""]
            lines += [f"- {row['name']}: {row['error'][:300]}" for row in failed]
            lines.append("")
        refused = [row for row in mine if row.get("export", "ok") != "ok"]
        if refused:
            lines += ["Not exported:", ""]
            lines += [f"- {row['name']}: {_refusal(row)}" for row in refused]
            lines.append("")
        lines += [
            "| model | kind | parameters, M | groups | units | prunable groups | parameters in prunable groups | "
            "half-slim / full parameters | checks passed | trace s | slim s | frozen, and why |",
            "| --- | --- | --: | --: | --: | --: | --: | --: | --- | --: | --: | --- |",
        ]
        for row in sorted(mine, key=lambda one: (one["kind"], one["name"])):
            cells = [
                row["name"],
                row["kind"],
                f"{row['parameters'] / 1e6:.1f}" if "parameters" in row else "-",
                row.get("groups", "-"),
                row.get("units", "-"),
                row.get("prunable", "-"),
                f"{row['prunable_share']:.1%}" if "prunable_share" in row else "-",
                f"{row['small'] / row['parameters']:.2f}" if "small" in row else "-",
                " ".join([*row.get("passed", []), *(["export"] if row.get("export") == "ok" else [])])
                + ("; **failed**" if row.get("error") else ""),
                row.get("trace_seconds", "-"),
                row.get("slim_seconds", "-"),
                _reasons(row),
            ]
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
        lines.append("")
    return "\n".join([*lines, *_peer(rows)])


def write_report(rows: list[dict[str, Any]], path: Path, note: str = "") -> None:
    """Write the page, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(render(rows, note), encoding="utf-8")
    os.replace(temporary, path)
