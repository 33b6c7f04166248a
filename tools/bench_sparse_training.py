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
from pathlib import Path
from typing import Any

import torch

from halp_iee.graph import trace
from halp_iee.methods.sparse import METHODS
from halp_iee.models import build
from halp_iee.train import fit, make_optimizer
from halp_iee.train.data import load
from halp_iee.train.recipe import Recipe
from halp_iee.train.records import steps_per_epoch

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
    recipe = Recipe(epochs=given.epochs, batch_size=given.batch_size, seed=seed, evaluate_every=given.epochs)
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
        "epochs": given.epochs, "top1": history.top1, "seconds": time.perf_counter() - since,
        "final_sparsity": made.sparsity, "exploration_rate": events[-1]["exploration_rate"],
        "survival": [e["survival"] for e in events if e.get("survival") is not None],
        "iou": [e["iou"] for e in events if e["kind"] in ("grow", "update")],
    }  # fmt: skip


def run(given: argparse.Namespace) -> None:
    file = given.work / "runs.jsonl"
    given.work.mkdir(parents=True, exist_ok=True)
    done = {(r["method"], r["sparsity"], r["seed"]) for r in _read(file)}
    for seed in given.seeds:
        for sparsity in given.sparsities:
            for name in given.methods:
                if (name, sparsity, seed) in done:
                    continue
                record = one(given, name, sparsity, seed)
                with file.open("a") as out:
                    out.write(json.dumps(record) + "\n")
                print(f"{name} {sparsity:.0%} seed {seed}: top-1 {record['top1']:.4f}", file=sys.stderr, flush=True)


def report(given: argparse.Namespace) -> None:
    records = _read(given.work / "runs.jsonl")
    if not records:
        sys.exit(f"no runs in {given.work}")
    first = records[0]
    cells: dict[tuple[str, float], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        cells[record["method"], record["sparsity"]].append(record)
    sparsities = sorted({record["sparsity"] for record in records})
    lines = [
        "# Sparse training methods side by side", "",
        f"Written by `tools/bench_sparse_training.py`: {first['model']} on {first['data']}, {first['epochs']} epochs, "
        f"torch {torch.__version__.split('+')[0]}, {platform.machine()}.",
        "Top-1 in % on the test set after the last epoch, mean and standard deviation over seeds; R_s is ITOP's "
        "exploration rate; survival is the share of grown weights that the next prune spares, over all updates.",
        "", "| method | sparsity | seeds | top-1 | R_s | survival, mean | lowest |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for sparsity in sparsities:
        for name in VARIANTS:
            found = cells.get((name, sparsity))
            if not found:
                continue
            top1 = [100 * r["top1"] for r in found]
            spread = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
            kept = [value for r in found for value in r["survival"]]
            shown = f"{statistics.mean(kept):.3f} | {min(kept):.3f}" if kept else "| "
            rate = statistics.mean(r["exploration_rate"] for r in found)
            lines.append(
                f"| {name} | {sparsity:.0%} | {len(found)} | {statistics.mean(top1):.2f}{spread} "
                f"| {rate:.3f} | {shown} |"
            )
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--data", default="digits-hard")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--methods", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.8, 0.9, 0.95, 0.98])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    {"run": run, "report": report}[given.command](given)


if __name__ == "__main__":
    main()
