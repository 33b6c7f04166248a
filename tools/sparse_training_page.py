"""The page of docs/results about sparse trainings, from the runs that ``bench_sparse_training.py`` made.

They are kept beside the page, in sparse_training.jsonl, a line each: a *run* (network, method, sparsity, seed, its
top-1 and its updates); where the runs were lost, the *summary* of a cell that the page had, or what it *told*.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from halp_iee.run.sparse_page import write_sparse_page
from halp_iee.sparsity.schedules import cosine
from halp_iee.train.data import load

# What the papers find: the first above the second.
ORDERINGS = (
    ("iee", "rigl"), ("rigl", "set"), ("set", "static"), ("mest em&s", "mest em"), ("mest em", "mest plain"),
    ("chase", "rigl"),
)  # fmt: skip
_MODELS = ("resnet20", "wide_resnet22_2")
_TRAINING = ("model", "steps", "epochs", "batch_size", "precision", "data")
_RUN = (*_TRAINING, "method", "sparsity", "seed")
_UPDATE = ("kind", "step_of_method", "iou", "survival", "exploration_rate")
OUT = Path(__file__).parent.parent / "docs" / "results" / "sparse_training.md"
RECORDS = OUT.with_suffix(".jsonl")

Record = dict[str, Any]
Cells = Mapping[tuple[str, float], list[Record]]


def read(file: Path) -> list[Record]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def write_page(fresh: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> None:
    """Adds fresh runs to the records, and writes the page of all of them; rows in the order of ``methods``."""
    records = _merged(read(RECORDS), [_compact(r) for r in fresh])
    text = [
        "# Sparse training methods side by side", "",
        f"Written by `tools/bench_sparse_training.py`, torch {torch.__version__.split('+')[0]}, {platform.machine()}, "
        "one thread. ERK for all methods but those that rank globally; those that update every so many steps do so "
        "forty times a training, IEE at its defaults, which were chosen on seed 0 of ResNet-20 with "
        "this test set. Top-1 in % on the test set after the last "
        "epoch, mean and standard deviation over seeds; R_s is ITOP's exploration rate; survival is the share of "
        "grown weights that the next prune spares, over all updates. Every run is a line of `sparse_training.jsonl`; "
        "of cells marked * the runs were lost, and what this page said of them stands.", "",
    ]  # fmt: skip
    for training in sorted({_training(r) for r in records}, key=lambda t: (t[0], -t[1])):
        text += _of_training([r for r in records if _training(r) == training], methods)
    text += _missing(records, methods)
    _replace(RECORDS, "".join(json.dumps(r) + "\n" for r in records))
    _replace(OUT, "\n".join(text).rstrip() + "\n")
    print("\n".join(text))
    _figure([r for r in records if "seed" in r])


def _replace(file: Path, text: str) -> None:
    beside = file.with_suffix(".partial")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, file)


def _compact(run: Mapping[str, Any]) -> Record:
    updates = [[_short(e.get(k)) for k in _UPDATE] for e in run["events"]]
    record = {**{k: run[k] for k in _RUN}, "top1": run["top1"], "seconds": round(run["seconds"], 1), "updates": updates}
    if run["seed"] == 0:  # for the figure
        record["sparsity_by_layer"] = {n: _short(v) for n, v in run["sparsity_by_layer"].items()}
    return record


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _merged(known: list[Record], fresh: list[Record]) -> list[Record]:
    """Fresh runs replace those of the same key, and as many of them as it had seeds the summary of their cell."""
    new = {tuple(r[k] for k in _RUN): r for r in fresh}
    runs = [r for r in known if "seed" in r and tuple(r[k] for k in _RUN) not in new] + list(new.values())
    count = Counter(tuple(r[k] for k in _RUN[:-1]) for r in runs)
    lost = [r for r in known if "seed" not in r and count[tuple(r.get(k) for k in _RUN[:-1])] < r.get("seeds", 1)]
    return sorted([*lost, *runs], key=lambda r: json.dumps([r.get(k, "") for k in _RUN]))


def _training(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record[k] for k in _TRAINING)


def _events(run: Record) -> list[Record]:
    return [dict(zip(_UPDATE, update, strict=True)) for update in run["updates"]]


def _survival(run: Record) -> list[float]:
    return [e["survival"] for e in _events(run) if e["survival"] is not None]


def _of_training(records: list[Record], methods: Sequence[str]) -> list[str]:
    model, steps, epochs, batch_size, precision, data = _training(records[0])
    cells: dict[tuple[str, float], list[Record]] = defaultdict(list)
    lost, told = {}, {}
    for record in records:
        cell = record.get("method", record.get("about")), record["sparsity"]
        if "told" in record:
            told[cell] = record["told"]
        elif "seeds" in record:
            lost[cell] = record
        else:
            cells[cell].append(record)
    lines = [
        f"## {model} on {data}, {steps} steps", "",
        f"{epochs} epochs, batches of {batch_size}, {precision}.", "",
        "| method | sparsity | seeds | top-1 | R_s | survival, mean | lowest |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    sparsities = sorted({record["sparsity"] for record in records})
    for sparsity in sparsities:
        for name in methods:
            if (name, sparsity) in lost:
                lines.append(f"| {name} * | {sparsity:.0%} | {_row(lost[name, sparsity])}")
            elif (name, sparsity) in cells:
                lines.append(f"| {name} | {sparsity:.0%} | {_row(_summary(cells[name, sparsity]))}")
    images = len(load(data).test)
    explained = (
        ("orderings", _ORDERINGS.format(images), _orderings, ORDERINGS), ("stages", _WHY_STAGES, _stages, ()),
        ("gradients", _WHY_GRADIENTS, partial(_pairs, _GRADIENTS), _GRADIENTS),
        ("rarer", _WHY_RARER, partial(_pairs, _RARER), _RARER),
    )  # fmt: skip
    for about, heading, explain, pairs in explained:
        said = [
            f"- {sparsity:.0%}: {one}." for sparsity in sparsities
            if (one := "; ".join(explain(cells, sparsity, images)) or told.get((about, sparsity)))
        ]  # fmt: skip
        if one := "; ".join(_together(pairs, cells, images, "as published" if pairs is ORDERINGS else _BEYOND)):
            said.append(f"- All sparsities together, a pair being one sparsity and seed: {one}.")
        lines += ["", heading, "", *said] if said else []
    return [*lines, ""]


def _summary(runs: list[Record]) -> Record:
    top1 = [100 * r["top1"] for r in runs]
    kept = [value for r in runs for value in _survival(r)]
    return {
        "seeds": len(runs), "top1_mean": statistics.mean(top1),
        "top1_std": statistics.stdev(top1) if len(top1) > 1 else None,
        "exploration_rate": statistics.mean(_events(r)[-1]["exploration_rate"] for r in runs),
        "survival": [statistics.mean(kept), min(kept)] if kept else None,
    }  # fmt: skip


def _row(cell: Record) -> str:
    spread = "" if cell["top1_std"] is None else f" ± {cell['top1_std']:.2f}"
    survival = " | ".join(f"{v:.3f}" for v in cell["survival"]) if cell["survival"] else "| "
    return f"{cell['seeds']} | {cell['top1_mean']:.2f}{spread} | {cell['exploration_rate']:.3f} | {survival} |"


_ORDERINGS = (
    "Orderings of the papers, as top-1 of the first less that of the second, in points. The error is that of "
    "a difference of two accuracies on {} test images or that between the seeds, whichever is greater; "
    "what is within twice of it is not decided. Of one seed all methods have the same network, data and order. "
    "The papers' own gaps between IEE and RigL are 0.3 to 1.3 points, after 97,500 steps and more."
)

_WHY_STAGES = (
    "What the length of IEE's exploration and its start do, by experiment. `Q = H` gives all three stages one "
    "length, as the paper does over some two hundred cycles; here it makes five. `initial values` also wakes weights "
    "that never lived with the random values that the network began with, instead of zero:"
)


_WHY_GRADIENTS = (
    "On why growing by gradient is not above growing by chance, by experiment. `rigl, 20 batches` sums the dense "
    "gradient of the 20 batches up to an update (`gradient_batches`), so of 320 images instead of 16; RigL's own "
    "batches are of 128 to 4096. `rigl global` is RigL with one ranking over all layers, which Chase has too:"
)
_SMOOTH = "rigl, 20 batches"
_GRADIENTS = ((_SMOOTH, "rigl"), (_SMOOTH, "set"), ("rigl", "rigl global"), ("chase", "rigl global"))


def _stages(cells: Cells, sparsity: float, images: int) -> Iterator[str]:
    for name in ("iee, Q = H", "iee, Q = H, initial values"):
        if _both(cells, "iee", name, sparsity):
            told = _told("iee", name, cells, sparsity, images, above=_BEYOND)
            mine, other = (_share(cells[n, sparsity][0]) for n in ("iee", name))
            yield f"{told}. Its {other}; iee's {mine}"


_WHY_RARER = (
    "On why exchanging weights is hardly above a fixed mask, by experiment. `rarer` updates ten times a training "
    "instead of forty, so what has grown is trained four times as long before it is judged, which ITOP asks of an "
    "exploration that can be relied on:"
)


_RARER = (("rigl, rarer", "rigl"), ("set, rarer", "set"), ("rigl, rarer", "set, rarer"), ("set, rarer", "static"))
_BEYOND = "beyond the error"


def _pairs(pairs: Sequence[tuple[str, str]], cells: Cells, sparsity: float, images: int) -> Iterator[str]:
    for one, other in pairs:
        if _both(cells, one, other, sparsity):
            yield _told(one, other, cells, sparsity, images, above=_BEYOND)


def _share(record: Record) -> str:
    """How much of a training explores. H = J in all of these."""
    at = {kind: [e["step_of_method"] for e in _events(record) if e["kind"] == kind] for kind in ("prune", "grow")}
    H, cycle, cycles = at["prune"][0], at["grow"][0], len(at["grow"])
    Q = cycle - 2 * H
    return f"{cycles} cycles of {H} + {H} + {Q} steps explore for {cycles * Q / record['steps']:.1%} of the training"


def _told(
    better: str, worse: str, cells: Cells, sparsity: float, images: int, *, above: str = "as published",
    of: str = "seed",
) -> str:  # fmt: skip
    """The difference of two methods over the seeds that both have, in points, and whether it is one."""
    tops = [{r["seed"]: 100 * r["top1"] for r in cells[name, sparsity]} for name in (better, worse)]
    seeds = sorted(set(tops[0]) & set(tops[1]))
    gaps = [tops[0][seed] - tops[1][seed] for seed in seeds]
    drawn = sum(top[seed] * (100 - top[seed]) for top in tops for seed in seeds) / len(seeds) / images
    spread = statistics.variance(gaps) if len(gaps) > 1 else 0.0
    gap, error = statistics.mean(gaps), (max(drawn, spread) / len(seeds)) ** 0.5
    verdict = above if gap > 2 * error else "the reverse" if gap < -2 * error else "not decided"
    return f"{better} over {worse} {gap:+.2f} ± {error:.2f} ({len(seeds)} {of}{'s' * (len(seeds) > 1)}: {verdict})"


def _both(cells: Cells, one: str, other: str, sparsity: float) -> set[Any]:
    """The seeds that two methods have in common."""
    mine, theirs = ({r["seed"] for r in cells.get((name, sparsity), [])} for name in (one, other))
    return mine & theirs


def _orderings(cells: Cells, sparsity: float, images: int) -> Iterator[str]:
    for better, worse in ORDERINGS:
        if _both(cells, better, worse, sparsity):
            yield _told(better, worse, cells, sparsity, images)
    if _both(cells, "iee", "rigl", sparsity):
        of, below = _survival_above(cells["iee", sparsity], cells["rigl", sparsity])
        told = f"IEE's survival rate above RigL's at the same point of training in {of - len(below)} of {of} updates"
        if below:
            at = ", ".join(f"{a:.0%}, where RigL exchanges {_exchanged(a):.2%} of what lives" for a in sorted({*below}))
            told += f" (not, of the time of the updates, at {at})"
        yield told


def _together(pairs: Sequence[tuple[str, str]], cells: Cells, images: int, above: str) -> Iterator[str]:
    """The same over all sparsities at once."""
    every: dict[tuple[str, float], list[Record]] = defaultdict(list)
    for (name, sparsity), runs in cells.items():
        every[name, 0.0] += [{**r, "seed": (sparsity, r["seed"])} for r in runs]
    for better, worse in pairs:
        if len({sparsity for sparsity, _ in _both(every, better, worse, 0.0)}) > 1:
            yield _told(better, worse, every, 0.0, images, above=above, of="pair")


def _exchanged(a: float) -> float:
    """RigL's share of the live weights."""
    return cosine(0.3, 0.0, a)


def _missing(records: list[Record], methods: Sequence[str]) -> list[str]:
    """What of the whole plan has not been trained."""
    seeds: dict[tuple[str, str, float], int] = defaultdict(int)
    longest = {m: max((r["steps"] for r in records if r["model"] == m), default=0) for m in _MODELS}
    for r in records:
        if r["steps"] == longest.get(r["model"]) and "method" in r:
            cell = r["model"], r["method"], r["sparsity"]
            seeds[cell] = max(seeds[cell], r["seeds"]) if "seeds" in r else seeds[cell] + 1
    plan = [(m, name, s) for m in _MODELS for name in methods if "," not in name for s in (0.8, 0.9, 0.95, 0.98)]
    some = sum(1 for cell in plan if 0 < seeds[cell] < 3)
    whole = sum(1 for cell in plan if seeds[cell] >= 3)
    if whole == len(plan):
        return []
    return [
        f"Of the {len(plan)} cells of the plan (two networks, {len(plan) // 8} methods, 80, 90, 95 and 98%) "
        f"{whole} have three seeds, {some} have one or two, and {len(plan) - some - whole} have not been trained."
    ]


def _survival_above(iee: list[Record], rigl: list[Record]) -> tuple[int, list[float]]:
    """Every prune of IEE against RigL's last update before it, of the same seed: how many there are, and the points of
    the update period at which IEE's survival rate is not above RigL's."""
    of, below = 0, []
    for mine in iee:
        for theirs in (r for r in rigl if r["seed"] == mine["seed"]):
            curve = [(e["step_of_method"], e["survival"]) for e in _events(theirs) if e["survival"] is not None]
            for event in _events(mine):
                before = [value for step, value in curve if step <= event["step_of_method"]]
                if event["survival"] is not None and before:
                    of += 1
                    if event["survival"] <= before[-1]:
                        below.append(event["step_of_method"] / (0.75 * mine["steps"]))
    return of, below


def _figure(records: list[Record]) -> None:
    """IEE beside RigL, SET and MEST, as in the paper's figure 5: of the first network, sparsity and seed."""
    records = [r for r in records if "sparsity_by_layer" in r]
    first = next((r for r in records if r["method"] == "iee"), None)
    if first is None:
        return
    alike = {r["method"]: r for r in records if all(r[k] == first[k] for k in ("model", "sparsity", "seed"))}
    shown = {name: alike[name] for name in ("iee", "rigl", "set", "mest em") if name in alike}
    runs = {
        name: [*_events(r)[:-1], {**_events(r)[-1], "sparsity_by_layer": r["sparsity_by_layer"]}]
        for name, r in shown.items()
    }
    about = [("network", first["model"]), ("data", first["data"]), ("sparsity", f"{first['sparsity']:.0%}"),
             ("seed", first["seed"]), ("epochs", first["epochs"])]  # fmt: skip
    write_sparse_page(runs, OUT.with_suffix(".html"), title="How masks change: IEE beside RigL, SET and MEST",
                      about=about, document={name: r["top1"] for name, r in shown.items()})  # fmt: skip
