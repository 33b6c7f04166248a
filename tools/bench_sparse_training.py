"""Trains the sparse methods beside one another and writes docs/results/sparse_training.md.

    python tools/bench_sparse_training.py run --work DIR [--methods rigl iee ...] [--sparsities 0.9] [--seeds 0 1 2]
    python tools/bench_sparse_training.py report --work DIR

Every training is one line of DIR/runs.jsonl and is not repeated, so it may be run in pieces. The network and
its data are the same for all; what differs is the method, the sparsity and the seed. A report adds the runs to
docs/results/sparse_training.jsonl, and the page is made of all that are there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from sparse_training_page import RECORDS, read, write_page

from halp_iee.graph import trace
from halp_iee.methods.sparse import METHODS
from halp_iee.models import build
from halp_iee.train import fit, make_optimizer
from halp_iee.train.data import load
from halp_iee.train.recipe import Recipe
from halp_iee.train.records import steps_per_epoch

_KEY = ("model", "epochs", "batch_size", "method", "sparsity", "seed")

# name -> method, settings. ERK for all that have a distribution, so that the methods alone differ.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "static": ("static", {}),
    "snip": ("snip", {}),
    "gmp": ("gmp", {"distribution": "erk"}),
    "set": ("set", {}),
    "rigl": ("rigl", {}),
    "rigl, 20 batches": ("rigl", {"gradient_batches": 20}),
    "rigl global": ("rigl", {"distribution": "global"}),
    "rigl, rarer": ("rigl", {"times": 10}),
    "set, rarer": ("set", {"times": 10}),
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
        extra["every"] = max(1, steps // settings.pop("times", 40))
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
    done = {tuple(r[k] for k in _KEY) for r in [*read(file), *read(RECORDS)] if "seed" in r}
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
    if given.command == "run":
        run(given)
    else:
        write_page(read(given.work / "runs.jsonl"), list(VARIANTS))


if __name__ == "__main__":
    main()
