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
from halp_iee.train import fit, make_optimizer
from halp_iee.train.data import load
from halp_iee.train.recipe import Recipe
from halp_iee.train.records import steps_per_epoch

# What the papers find: the first above the second.
ORDERINGS = (
    ("iee", "rigl"), ("rigl", "set"), ("set", "static"), ("mest em&s", "mest em"), ("mest em", "mest plain"),
    ("chase", "rigl"),
)  # fmt: skip
OUT = Path(__file__).parent.parent / "docs" / "results" / "sparse_training.md"

# name -> method, settings. ERK for all that have a distribution, so that the methods alone differ.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "static": ("static", {}),
    "snip": ("snip", {}),
    "gmp": ("gmp", {"distribution": "erk"}),
    "set": ("set", {}),
    "rigl": ("rigl", {}),
    "rigl global": ("rigl", {"distribution": "global"}),
    "iee": ("iee", {}),
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
    method, settings = VARIANTS[name]
    events: list[dict[str, Any]] = []
    extra: dict[str, Any] = {}
    if method not in ("iee", "static", "snip"):
        extra["every"] = max(1, steps // 40)
    if "channel_sparsity" in settings:
        extra["graph"] = trace(model, torch.zeros(1, *data.input_shape))
    made = METHODS[method](
        model, optimizer, steps=steps, sparsity=sparsity, seed=seed, on_event=events.append, **settings, **extra
    )
    since = time.perf_counter()
    history = fit(model, data, recipe, method=made, optimizer=optimizer)
    return {
        "method": name, "sparsity": sparsity, "seed": seed, "model": given.model, "data": given.data,
        "epochs": given.epochs, "precision": given.precision, "top1": history.top1,
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
    done = {(r["model"], r["method"], r["sparsity"], r["seed"]) for r in _read(file)}
    begun = time.monotonic()
    torch.set_num_threads(given.threads)
    for seed in given.seeds:
        for sparsity in given.sparsities:
            for name in given.methods:
                if (given.model, name, sparsity, seed) in done:
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
        "one thread. ERK for all methods but those that rank globally. Top-1 in % on the test set after the last "
        "epoch, mean and standard deviation over seeds; R_s is ITOP's exploration rate; survival is the share of "
        "grown weights that the next prune spares, over all updates.", "",
    ]  # fmt: skip
    for model in dict.fromkeys(r["model"] for r in records):
        lines += _of_model(model, [r for r in records if r["model"] == model])
    OUT.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print("\n".join(lines))
    _figure(records)


Cells = Mapping[tuple[str, float], list[dict[str, Any]]]


def _of_model(model: str, records: list[dict[str, Any]]) -> list[str]:
    first = records[0]
    cells: dict[tuple[str, float], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        cells[record["method"], record["sparsity"]].append(record)
    lines = [
        f"## {model} on {first['data']}, {first['epochs']} epochs, {first['precision']}", "",
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
    lines += ["", "Orderings of the papers, as top-1 of the first less that of the second, in points:", ""]
    for sparsity in sparsities:
        lines += [f"- {sparsity:.0%}: " + "; ".join(_orderings(cells, sparsity)) + "."]
    asked = [(name, sparsity) for name in VARIANTS for sparsity in (0.8, 0.9, 0.95, 0.98)]
    missing = [cell for cell in asked if len(cells.get(cell, [])) < 3]
    if missing:
        lines += ["", f"{len(missing)} of {len(asked)} cells (13 methods, 80, 90, 95 and 98%) have fewer than 3 seeds."]
    return [*lines, ""]


def _top1(found: list[dict[str, Any]]) -> tuple[float, float]:
    top1 = [100 * r["top1"] for r in found]
    return statistics.mean(top1), statistics.stdev(top1) if len(top1) > 1 else 0.0


def _orderings(cells: Cells, sparsity: float) -> Iterator[str]:
    for better, worse in ORDERINGS:
        if (better, sparsity) not in cells or (worse, sparsity) not in cells:
            continue
        (a, spread_a), (b, spread_b) = (_top1(cells[name, sparsity]) for name in (better, worse))
        spread = max(spread_a, spread_b)
        if min(len(cells[name, sparsity]) for name in (better, worse)) < 2:
            yield f"{better} over {worse} {a - b:+.2f} (one seed, so no spread)"
            continue
        verdict = "as published" if a - b > spread else "within the seeds' spread" if a > b - spread else "the reverse"
        yield f"{better} over {worse} {a - b:+.2f} (spread {spread:.2f}: {verdict})"
    if ("iee", sparsity) in cells and ("rigl", sparsity) in cells:
        above, of = _survival_above(cells["iee", sparsity], cells["rigl", sparsity])
        yield f"IEE's survival rate above RigL's at the same point of training in {above} of {of} updates"


def _survival_above(iee: list[dict[str, Any]], rigl: list[dict[str, Any]]) -> tuple[int, int]:
    """At every prune of IEE against RigL's last update before it, of the same seed."""
    above = of = 0
    for mine in iee:
        for theirs in (r for r in rigl if r["seed"] == mine["seed"]):
            curve = [(e["step_of_method"], e["survival"]) for e in theirs["events"] if e["survival"] is not None]
            for event in mine["events"]:
                before = [value for step, value in curve if step <= event["step_of_method"]]
                if event["survival"] is not None and before:
                    of += 1
                    above += event["survival"] > before[-1]
    return above, of


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
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--begin-within", type=float, default=float("inf"), metavar="S", help="begin runs for so long")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--methods", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.8, 0.9, 0.95, 0.98])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    {"run": run, "report": report}[given.command](given)


if __name__ == "__main__":
    main()
