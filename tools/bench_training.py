"""IEE against HALP, Torch-Pruning and uniform width scaling: equal epochs, equal measured latency, several seeds.

    python tools/bench_training.py next --work DIR      does runs that are still missing; exits 3 when none is
    python tools/bench_training.py measure --work DIR   times all networks once more, in one go, on a quiet machine
    python tools/bench_training.py speed --work DIR     times epochs of the dense network and of IEE, on a quiet machine
    python tools/bench_training.py report --work DIR    writes docs/results/training.md

Every run adds one JSON line to DIR/runs.jsonl, so it can be stopped and gone on with at any moment; a report adds them
to docs/results/training.jsonl. A latency table is
swept once a network and shared by all its runs. Torch-Pruning is a peer, not a dependency: pip install torch-pruning.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training_methods import RUN, Bench, bench, recipe
from training_page import NETWORKS, TARGETS, lines, wanted, write_page

from halp_iee.measure.latency import measure_onnx
from halp_iee.methods.iee import IEE
from halp_iee.run.searches import default_stages
from halp_iee.train import fit, make_optimizer
from halp_iee.train.records import steps_per_epoch


def do_several(work: Path, epochs: int, runs: list[tuple[str, float, str, int]], seconds: float) -> int:
    """Missing runs, the last of them begun before so many seconds have passed; 3 when nothing is missing."""
    until = time.monotonic() + seconds
    while True:
        code = do_next(work, epochs, runs)
        if code or time.monotonic() >= until:
            return code


def do_next(work: Path, epochs: int, runs: list[tuple[str, float, str, int]]) -> int:
    """One missing run, or with a network that has none the table; 3 when nothing is missing."""
    torch.set_num_threads(1)
    have = {(r["network"], r["target"], r["method"], r["seed"]) for r in lines(work)}
    for network, target, method, seed in runs:
        if (network, target, method, seed) in have:
            continue
        fresh = not (work / f"{network}.calibration.json").exists()
        started = time.monotonic()
        b = bench(network, work)
        if fresh:
            print(f"{network}: table and calibration in {time.monotonic() - started:.0f} s", flush=True)
            return 0
        found = RUN[method](b, target, epochs, seed)
        line = {"network": network, "target": target, "method": method, "seed": seed, "epochs": epochs, **found,
                "wall": time.monotonic() - started}  # fmt: skip
        with open(work / "runs.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        said = {k: line.get(k) for k in ("network", "target", "method", "seed", "top1", "share", "seconds", "wall")}
        print(json.dumps(said), flush=True)
        return 0
    return 3


def do_measure(work: Path) -> int:
    """Time every structure beside the dense network, over several sessions each, and write the shares down."""
    shares: dict[str, float] = {}
    made: dict[str, Bench] = {}
    for r in lines(work):
        if "keep" not in r:
            continue
        if r["network"] not in made:
            made[r["network"]] = bench(r["network"], work)
            dense = measure_onnx({"dense": made[r["network"]].dense_file}, seconds=2.0)
            shares[f"{r['network']}/dense_ms"] = dense["dense"].median_ms
        b = made[r["network"]]
        model = b.graph.slim({n: np.asarray(u) for n, u in r["keep"].items()})
        key = "/".join(str(r[k]) for k in ("network", "target", "method", "seed"))
        shares[key] = b.time_model(model)
        print(key, f"{shares[key]:.4f}", flush=True)
    (work / "shares.json").write_text(json.dumps(shares, indent=1))
    return 0


def do_speed(work: Path, networks: tuple[str, ...]) -> int:
    """Seconds of dense steps, of steps in the update period (all that IEE does included) and after it."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for network in networks:
        b = bench(network, work)
        plan = recipe(6, 0).replace(warmup_epochs=0.0)
        dense = b.build(0)
        stop = 24
        before = fit(dense, b.data, plan, stop_after=stop)
        model = b.build(0)
        optimizer = make_optimizer(model, plan)
        config = default_stages(6 * steps_per_epoch(len(b.data.train), plan.batch_size))
        method = IEE(model, b.graph, b.cost, target_ms=0.3 * b.cost.dense_ms, optimizer=optimizer, config=config)
        history = fit(model, b.data, plan, method=method, optimizer=optimizer, stop_after=config.steps + 30)
        again = fit(dense, b.data, plan, stop_after=stop)
        dense_s = (before.seconds + again.seconds) / (2 * stop)
        during = [history.phases[stage] for stage in ("importance", "accuracy", "explore")]
        after = history.phases["train"]
        cycle_s = sum(method.overhead_seconds[on] for on in ("solver", "surgery")) / config.T
        found[network] = {
            "dense_step_s": dense_s,
            "during": sum(s for _, s in during) / config.steps / dense_s,
            "stages": {name: history.phases[name][1] / history.phases[name][0] / dense_s for name in history.phases},
            "after": after[1] / after[0] / dense_s,
            "solver_and_surgery_s_a_cycle": cycle_s,
            "judging_s_a_step": method.overhead_seconds["importance"] / ((config.H + config.Q) * config.T),
        }
        print(network, json.dumps(found[network]), flush=True)
        (work / "speed.json").write_text(json.dumps(found, indent=1))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["next", "measure", "speed", "report"])
    parser.add_argument("--work", type=Path, required=True, help="where tables, weights and lines are kept")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--targets", nargs="+", type=float, default=[*TARGETS, 1.0], help="for next: only these")
    parser.add_argument("--methods", nargs="+", choices=sorted(RUN), default=sorted(RUN), help="for next: only these")
    parser.add_argument("--begin-within", type=float, default=0.0, metavar="S", help="for next: begin runs for so long")
    parser.add_argument("--out", type=Path, default=Path("docs/results/training.md"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.what == "measure":
        return do_measure(options.work)
    if options.what == "speed":
        return do_speed(options.work, tuple(options.networks))
    if options.what == "report":
        write_page(options.work, options.out)
        print(options.out)
        return 0
    runs = [
        run for run in wanted(options.seeds, tuple(options.networks))
        if run[2] in options.methods and run[1] in (0.0, *options.targets)
    ]  # fmt: skip
    return do_several(options.work, options.epochs, runs, options.begin_within)


if __name__ == "__main__":
    sys.exit(main())
