"""Trains the sparse methods beside one another and writes docs/results/sparse_training.md.

    python tools/bench_sparse_training.py run --work DIR [--methods rigl iee ...] [--sparsities 0.9] [--seeds 0 1 2]
    python tools/bench_sparse_training.py report --work DIR

Every training is one line of DIR/runs.jsonl and is not repeated, so it may be run in pieces. The network and
its data are the same for all; what differs is the method, the sparsity and the seed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from halp_iee.graph import trace
from halp_iee.methods.sparse import METHODS
from halp_iee.models import build
from halp_iee.run.sparse_page import write_sparse_page
from halp_iee.sparsity.schedules import cosine
from halp_iee.train import fit, make_optimizer
from halp_iee.train.data import load
from halp_iee.train.recipe import Recipe
from halp_iee.train.records import steps_per_epoch

# What the papers find: the first above the second.
ORDERINGS = (
    ("iee", "rigl"), ("rigl", "set"), ("set", "static"), ("mest em&s", "mest em"), ("mest em", "mest plain"),
    ("chase", "rigl"),
)  # fmt: skip
_KEY = ("model", "epochs", "batch_size", "method", "sparsity", "seed")
_MODELS = ("resnet20", "wide_resnet22_2")
OUT = Path(__file__).parent.parent / "docs" / "results" / "sparse_training.md"

# name -> method, settings. ERK for all that have a distribution, so that the methods alone differ.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "static": ("static", {}),
    "snip": ("snip", {}),
    "gmp": ("gmp", {"distribution": "erk"}),
    "set": ("set", {}),
    "rigl": ("rigl", {}),
    "rigl, 20 batches": ("rigl", {"gradient_batches": 20}),
    "rigl global": ("rigl", {"distribution": "global"}),
    "iee": ("iee", {}),
    "iee, Q = H": ("iee", {"equal": True}),
    "iee, Q = H, initial values": ("iee", {"equal": True, "unused": "initial"}),
    "srigl": ("srigl", {}),
    "mest plain": ("mest", {"variant": "plain", "distribution": "erk", "kinds": ("conv", "linear")}),
    "mest em": ("mest", {"variant": "em", "distribution": "erk", "kinds": ("conv", "linear")}),
    "mest em&s": ("mest", {"variant": "em&s", "distribution": "erk", "kinds": ("conv", "linear")}),
    "chase": ("chase", {"stop": 0.75}),
    "chase channels": ("chase", {"stop": 0.75, "channel_sparsity": 0.4}),
}


def one(given: argparse.Namespace, name: str, sparsity: float, seed: int) -> dict[str, Any]:
    data = load(given.data)
    torch.manual_seed(seed)
    model = build(given.model)
    recipe = Recipe(
        epochs=given.epochs, batch_size=given.batch_size, seed=seed, evaluate_every=given.epochs,
        precision=given.precision, warmup_epochs=0.5,
    )  # fmt: skip
    optimizer = make_optimizer(model, recipe)
    steps = given.epochs * steps_per_epoch(len(data.train), given.batch_size)
    method, settings = VARIANTS[name][0], dict(VARIANTS[name][1])
    events: list[dict[str, Any]] = []
    extra: dict[str, Any] = {}
    if method not in ("iee", "static", "snip"):
        extra["every"] = max(1, steps // 40)
    if settings.pop("equal", False):  # stages of one length, as the paper has them, in five cycles
        settings |= dict.fromkeys("HJQ", int(0.75 * steps) // 15)
    if "channel_sparsity" in settings:
        extra["graph"] = trace(model, torch.zeros(1, *data.input_shape))
    made = METHODS[method](
        model, optimizer, steps=steps, sparsity=sparsity, seed=seed, on_event=events.append, **settings, **extra
    )
    since = time.perf_counter()
    history = fit(model, data, recipe, method=made, optimizer=optimizer)
    return {
        "method": name, "sparsity": sparsity, "seed": seed, "model": given.model, "data": given.data,
        "epochs": given.epochs, "batch_size": given.batch_size, "steps": steps,
        "precision": given.precision, "top1": history.top1,
        "seconds": time.perf_counter() - since,
        "final_sparsity": made.sparsity, "exploration_rate": events[-1]["exploration_rate"],
        "survival": [e["survival"] for e in events if e.get("survival") is not None],
        "events": [
            {k: e.get(k) for k in ("kind", "step_of_method", "iou", "survival", "exploration_rate")} for e in events
        ],
        "sparsity_by_layer": events[-1]["sparsity_by_layer"],
    }  # fmt: skip


def run(given: argparse.Namespace) -> None:
    file = given.work / "runs.jsonl"
    given.work.mkdir(parents=True, exist_ok=True)
    done = {tuple(r[k] for k in _KEY) for r in _read(file)}
    begun = time.monotonic()
    torch.set_num_threads(given.threads)
    for seed in given.seeds:
        for sparsity in given.sparsities:
            for name in given.methods:
                if (given.model, given.epochs, given.batch_size, name, sparsity, seed) in done:
                    continue
                if time.monotonic() - begun > given.begin_within:
                    sys.exit(0)
                record = one(given, name, sparsity, seed)
                with file.open("a") as out:
                    out.write(json.dumps(record) + "\n")
                print(f"{name} {sparsity:.0%} seed {seed}: top-1 {record['top1']:.4f}", file=sys.stderr, flush=True)


def report(given: argparse.Namespace) -> None:
    records = _read(given.work / "runs.jsonl")
    if not records:
        sys.exit(f"no runs in {given.work}")
    lines = [
        "# Sparse training methods side by side", "",
        f"Written by `tools/bench_sparse_training.py`, torch {torch.__version__.split('+')[0]}, {platform.machine()}, "
        "one thread. ERK for all methods but those that rank globally; those that update every so many steps do so "
        "forty times a training, IEE at its defaults, which were chosen on seed 0 of ResNet-20 with "
        "this test set. Top-1 in % on the test set after the last "
        "epoch, mean and standard deviation over seeds; R_s is ITOP's exploration rate; survival is the share of "
        "grown weights that the next prune spares, over all updates.", "",
    ]  # fmt: skip
    trainings = sorted({_training(r) for r in records}, key=lambda t: (t[0], -t[1]))
    for training in trainings:
        lines += _of_training([r for r in records if _training(r) == training])
    lines += _missing(records)
    OUT.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print("\n".join(lines))
    _figure([r for r in records if _training(r) == trainings[0]])


Cells = Mapping[tuple[str, float], list[dict[str, Any]]]


def _training(record: Mapping[str, Any]) -> tuple[str, int, int, int, str, str]:
    return tuple(record[k] for k in ("model", "steps", "epochs", "batch_size", "precision", "data"))  # type: ignore[return-value]


def _of_training(records: list[dict[str, Any]]) -> list[str]:
    model, steps, epochs, batch_size, precision, data = _training(records[0])
    cells: dict[tuple[str, float], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        cells[record["method"], record["sparsity"]].append(record)
    lines = [
        f"## {model} on {data}, {steps} steps", "",
        f"{epochs} epochs, batches of {batch_size}, {precision}.", "",
        "| method | sparsity | seeds | top-1 | R_s | survival, mean | lowest |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    sparsities = sorted({record["sparsity"] for record in records})
    for sparsity in sparsities:
        for name in VARIANTS:
            found = cells.get((name, sparsity))
            if not found:
                continue
            mean, spread = _top1(found)
            kept = [value for r in found for value in r["survival"]]
            shown = f"{statistics.mean(kept):.3f} | {min(kept):.3f}" if kept else "| "
            rate = statistics.mean(r["exploration_rate"] for r in found)
            top1 = f"{mean:.2f} ± {spread:.2f}" if len(found) > 1 else f"{mean:.2f}"
            lines.append(f"| {name} | {sparsity:.0%} | {len(found)} | {top1} | {rate:.3f} | {shown} |")
    images = len(load(data).test)
    lines += [
        "", f"Orderings of the papers, as top-1 of the first less that of the second, in points. The error is that of "
        f"a difference of two accuracies on {images} test images or that between the seeds, whichever is greater; "
        "what is within twice of it is not decided. Of one seed all methods have the same network, data and order. "
        "The papers' own gaps between IEE and RigL are 0.3 to 1.3 points, after 97,500 steps and more.", "",
    ]  # fmt: skip
    for sparsity in sparsities:
        told = [*_orderings(cells, sparsity, images)]
        lines += [f"- {sparsity:.0%}: " + "; ".join(told) + "."] if told else []
    lines.append("")
    for heading, explain in ((_WHY_STAGES, _stages), (_WHY_GRADIENTS, _gradients)):
        why = [line for sparsity in sparsities for line in explain(cells, sparsity, images)]
        lines += [heading, "", *why, ""] if why else []
    return lines


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


def _gradients(cells: Cells, sparsity: float, images: int) -> Iterator[str]:
    pairs = ((_SMOOTH, "rigl"), (_SMOOTH, "set"), ("rigl", "rigl global"), ("chase", "rigl global"))
    told = [
        _told(one, other, cells, sparsity, images, above="beyond the error")
        for one, other in pairs
        if {r["seed"] for r in cells.get((one, sparsity), [])} & {r["seed"] for r in cells.get((other, sparsity), [])}
    ]
    if told:
        yield f"- {sparsity:.0%}: " + "; ".join(told) + "."


def _stages(cells: Cells, sparsity: float, images: int) -> Iterator[str]:
    for name in ("iee, Q = H", "iee, Q = H, initial values"):
        both = [{r["seed"] for r in cells.get((n, sparsity), [])} for n in ("iee", name)]
        if not both[0] & both[1]:
            continue
        told = _told("iee", name, cells, sparsity, images, above="beyond the error")
        mine, other = (_share(cells[n, sparsity][0]) for n in ("iee", name))
        yield f"- {sparsity:.0%}, {name}: {told}. Its {other}; iee's {mine}."


def _share(record: Mapping[str, Any]) -> str:
    """How much of a training explores. H = J in all of these."""
    at = {kind: [e["step_of_method"] for e in record["events"] if e["kind"] == kind] for kind in ("prune", "grow")}
    H, cycle, cycles = at["prune"][0], at["grow"][0], len(at["grow"])
    Q = cycle - 2 * H
    return f"{cycles} cycles of {H} + {H} + {Q} steps explore for {cycles * Q / record['steps']:.1%} of the training"


def _top1(found: list[dict[str, Any]]) -> tuple[float, float]:
    top1 = [100 * r["top1"] for r in found]
    return statistics.mean(top1), statistics.stdev(top1) if len(top1) > 1 else 0.0


def _told(better: str, worse: str, cells: Cells, sparsity: float, images: int, *, above: str = "as published") -> str:
    """The difference of two methods over the seeds that both have, in points, and whether it is one."""
    tops = [{r["seed"]: 100 * r["top1"] for r in cells[name, sparsity]} for name in (better, worse)]
    seeds = sorted(set(tops[0]) & set(tops[1]))
    gaps = [tops[0][seed] - tops[1][seed] for seed in seeds]
    drawn = sum(top[seed] * (100 - top[seed]) for top in tops for seed in seeds) / len(seeds) / images
    spread = statistics.variance(gaps) if len(gaps) > 1 else 0.0
    gap, error = statistics.mean(gaps), (max(drawn, spread) / len(seeds)) ** 0.5
    verdict = above if gap > 2 * error else "the reverse" if gap < -2 * error else "not decided"
    return f"{better} over {worse} {gap:+.2f} ± {error:.2f} ({len(seeds)} seed{'s' * (len(seeds) > 1)}: {verdict})"


def _orderings(cells: Cells, sparsity: float, images: int) -> Iterator[str]:
    for better, worse in ORDERINGS:
        both = [{r["seed"] for r in cells.get((name, sparsity), [])} for name in (better, worse)]
        if both[0] & both[1]:
            yield _told(better, worse, cells, sparsity, images)
    if ("iee", sparsity) in cells and ("rigl", sparsity) in cells:
        of, below = _survival_above(cells["iee", sparsity], cells["rigl", sparsity])
        told = f"IEE's survival rate above RigL's at the same point of training in {of - len(below)} of {of} updates"
        if below:
            at = ", ".join(f"{a:.0%}, where RigL exchanges {_exchanged(a):.2%} of what lives" for a in sorted({*below}))
            told += f" (not, of the time of the updates, at {at})"
        yield told


def _exchanged(a: float) -> float:
    """RigL's share of the live weights."""
    return cosine(0.3, 0.0, a)


def _missing(records: list[dict[str, Any]]) -> list[str]:
    """What of the whole plan has not been trained."""
    seeds: dict[tuple[str, str, float], int] = defaultdict(int)
    longest = {model: max(r["steps"] for r in records if r["model"] == model) for model in _MODELS if any(
        r["model"] == model for r in records)}  # fmt: skip
    for r in records:
        if r["steps"] == longest.get(r["model"]):
            seeds[r["model"], r["method"], r["sparsity"]] += 1
    plan = [(m, name, s) for m in _MODELS for name in VARIANTS if "," not in name for s in (0.8, 0.9, 0.95, 0.98)]
    some = sum(1 for cell in plan if 0 < seeds[cell] < 3)
    whole = sum(1 for cell in plan if seeds[cell] >= 3)
    if whole == len(plan):
        return []
    return [
        f"Of the {len(plan)} cells of the plan (two networks, {len(plan) // 8} methods, 80, 90, 95 and 98%) "
        f"{whole} have three seeds, {some} have one or two, and {len(plan) - some - whole} have not been trained."
    ]


def _survival_above(iee: list[dict[str, Any]], rigl: list[dict[str, Any]]) -> tuple[int, list[float]]:
    """Every prune of IEE against RigL's last update before it, of the same seed: how many there are, and the points of
    the update period at which IEE's survival rate is not above RigL's."""
    of, below = 0, []
    for mine in iee:
        for theirs in (r for r in rigl if r["seed"] == mine["seed"]):
            curve = [(e["step_of_method"], e["survival"]) for e in theirs["events"] if e["survival"] is not None]
            for event in mine["events"]:
                before = [value for step, value in curve if step <= event["step_of_method"]]
                if event["survival"] is not None and before:
                    of += 1
                    if event["survival"] <= before[-1]:
                        below.append(event["step_of_method"] / (0.75 * mine["steps"]))
    return of, below


def _figure(records: list[dict[str, Any]]) -> None:
    """IEE beside RigL, SET and MEST, as in the paper's figure 5: of the first network, sparsity and seed."""
    first = next((r for r in records if r["method"] == "iee"), records[0])
    alike = {r["method"]: r for r in records if all(r[k] == first[k] for k in ("model", "sparsity", "seed"))}
    shown = {name: alike[name] for name in ("iee", "rigl", "set", "mest em") if name in alike}
    runs = {
        name: [*r["events"][:-1], {**r["events"][-1], "sparsity_by_layer": r["sparsity_by_layer"]}]
        for name, r in shown.items()
    }
    about = [("network", first["model"]), ("data", first["data"]), ("sparsity", f"{first['sparsity']:.0%}"),
             ("seed", first["seed"]), ("epochs", first["epochs"])]  # fmt: skip
    write_sparse_page(runs, OUT.with_suffix(".html"), title="How masks change: IEE beside RigL, SET and MEST",
                      about=about, document={name: r["top1"] for name, r in shown.items()})  # fmt: skip


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--data", default="digits-hard")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--begin-within", type=float, default=float("inf"), metavar="S", help="begin runs for so long")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--methods", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.8, 0.9, 0.95, 0.98])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    {"run": run, "report": report}[given.command](given)


if __name__ == "__main__":
    main()
