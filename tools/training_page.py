"""The page of docs/results about trainings to a latency, from the lines that ``bench_training.py`` left.

The runs are kept beside the page, in training.jsonl, a line each, so a later report can add to them.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from pathlib import Path
from typing import Any

import torch

from halp_iee.measure import runtime
from halp_iee.report.compare import entries, setting_of, write
from halp_iee.run.searches import default_stages

NETWORKS = ("resnet20", "mobilenet_v1_cifar")
TARGETS = (0.30, 0.55)
METHODS = (
    "iee", "iee-dense", "halp", "torch-pruning", "torch-pruning-l2", "uniform", "uniform-next"
)  # fmt: skip
DATA = "digits-hard"
NOTES = Path(__file__).parent / "training_notes.md"  # what only a person can say of the figures
Record = dict[str, Any]
NAMES = {
    "iee": "IEE, from scratch", "iee-random": "IEE, from scratch, a random structure to start from",
    "iee-dense": "IEE, from a dense network",
    "halp": "HALP, from a dense network",
    "torch-pruning": "Torch-Pruning (group Taylor), from a dense network",
    "torch-pruning-l2": "Torch-Pruning (group L2), from a dense network",
    "uniform": "uniform width, from scratch", "uniform-next": "uniform width, the next wider, over the target",
    "dense": "dense",
}  # fmt: skip


def wanted(seeds: int, networks: tuple[str, ...]) -> list[tuple[str, float, str, int]]:
    """All runs, those first that others need."""
    runs: list[tuple[str, float, str, int]] = []
    for network in networks:
        for seed in range(seeds):
            runs += [(network, 0.0, "dense", seed)]
            runs += [(network, target, method, seed) for target in TARGETS for method in METHODS]
        runs += [(network, 1.0, "dense", seed) for seed in range(seeds)]
    return runs


def lines(work: Path) -> list[Record]:
    return _read(work / "runs.jsonl")


def _read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def records(work: Path, out: Path) -> list[Record]:
    """The runs beside the page, with those in ``work`` in place of the same ones: what the page is made of.

    A record is a run's line without its structure; its ``share`` is the last that was measured, ``train_seconds``
    are with those of the dense network that it started from.
    """
    every = lines(work)
    path = work / "shares.json"
    again = json.loads(path.read_text()) if path.exists() else {}
    kept = {_key(r): r for r in _read(out.with_suffix(".jsonl")) if "speed" not in r}
    dense = {r["network"]: r["dense_ms"] for r in kept.values() if "dense_ms" in r}  # one clock for the chart
    for r in every:
        record = {k: r[k] for k in ("network", "target", "method", "seed", "epochs", "top1")}
        record |= {"share": again.get(_key(r), r["share"]), "train_seconds": round(_seconds(r, every), 1)}
        if dense_ms := again.get(f"{r['network']}/dense_ms", dense.get(r["network"])):
            record["dense_ms"] = dense_ms
        kept[_key(r)] = record
    return sorted(kept.values(), key=_place)


def _place(r: Record) -> tuple[Any, ...]:
    return NETWORKS.index(r["network"]), r["target"], list(NAMES).index(r["method"]), r["seed"]


def speeds(work: Path, out: Path) -> dict[str, Record]:
    """What a step takes, by network: from ``work``, else as the page had it."""
    path = work / "speed.json"
    fresh = json.loads(path.read_text()) if path.exists() else {}
    return {r["network"]: r["speed"] for r in _read(out.with_suffix(".jsonl")) if "speed" in r} | fresh


def write_page(work: Path, out: Path) -> None:
    """Writes what the runs in ``work`` and those beside the page came to."""
    every, speed = records(work, out), speeds(work, out)
    epochs = every[0]["epochs"]
    text = [
        "# Training to a latency: IEE and its peers", "",
        f"Written by `tools/bench_training.py`. Data `{DATA}`, {epochs} epochs in all for every method (those that "
        f"start from a dense network: {epochs // 2} dense and {epochs - epochs // 2} after it), the same recipe "
        "(SGD, batch 64, learning rate 0.1, half an epoch of warm-up, cosine), every network built, exported and "
        "corrected until it meets the target as measured. Latency: ONNX Runtime, one thread, batch 1, as a share "
        "of the dense network's, timed in turn with it; a family whose next wider network lies on the other side "
        "of a step of the device stays under the target (the next wider one is beside it where it was trained). "
        "Top-1 on the test set: mean over seeds, and in brackets their standard deviation.",
        "", f"Machine: {platform.machine()}, {_processor()}, {os.cpu_count()} cores; "
        f"{' '.join(runtime.describe().values())}, torch {torch.__version__}.", "",
    ]  # fmt: skip
    for network in dict.fromkeys(r["network"] for r in every):
        dense = [r["top1"] for r in every if (r["network"], r["method"], r["target"]) == (network, "dense", 1.0)]
        text += [f"## {network}", ""]
        text += [f"Dense, {epochs} epochs: {_spread(dense)} over {len(dense)} seeds.", ""] if dense else []
        text += [
            "| target | method | seeds | top-1 | measured latency | training seconds |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for target in TARGETS:
            for method in METHODS:
                of = [r for r in every if (r["network"], r["method"], r["target"]) == (network, method, target)]
                if not of:
                    continue
                shares = [r["share"] for r in of]
                text.append(
                    f"| {target:.2f} | {NAMES[method]} | {len(of)} | {_spread([r['top1'] for r in of])} | "
                    f"{min(shares):.3f} to {max(shares):.3f} | {statistics.mean(r['train_seconds'] for r in of):.0f} |"
                )
        text += ["", *_margins(network, every), "", *_speed(speed.get(network))]
    missing = [
        w for w in wanted(3, NETWORKS) if w not in {(r["network"], r["target"], r["method"], r["seed"]) for r in every}
    ]
    if missing:
        named = sorted({f"{n} dense" if m == "dense" else f"{n} at {t:.2f}" for n, t, m, _ in missing})
        text += [f"{len(missing)} of {len(wanted(3, NETWORKS))} runs are missing: {', '.join(named)}.", ""]
    text += [
        "The widths of the uniform networks and of Torch-Pruning's are multiples of 4, for this runtime is slow at "
        "others. Training seconds include those of the dense network that a method starts from. They "
        "are of one thread on a machine that did other work at times, so they are for orientation.", "",
    ]  # fmt: skip
    text += [NOTES.read_text().strip(), ""] if NOTES.exists() else []
    text += [f"Every run as a point, top-1 over measured latency: `{out.with_suffix('.html').name}`.", ""]
    kept = [*every, *({"network": network, "speed": found} for network, found in speed.items())]
    out.with_suffix(".jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    out.write_text("\n".join(text))
    _chart(every, out.with_suffix(".html"))


def _chart(every: list[Record], out: Path) -> None:
    """Every run over its measured latency, IEE's as runs and the others as peers."""
    runs: dict[str, dict[str, Any]] = {}
    peers: list[Record] = []
    for r in every:
        dense_ms = r.get("dense_ms")
        if r["method"] == "dense" or dense_ms is None:
            continue
        about = {
            "model": r["network"], "method": NAMES[r["method"]], "seed": r["seed"], "top1": r["top1"],
            "train_seconds": r["train_seconds"], "device": f"{r['network']}: {_processor()}",
            "runtime": " ".join(runtime.describe().values()), "threads": 1, "batch": 1, "data": DATA,
        }  # fmt: skip
        name = f"{r['network']} {r['method']} {r['target']:.2f} #{r['seed']}"
        if r["method"].startswith("iee"):
            whole = [d["top1"] for d in every if d["network"] == r["network"] and d["target"] == 1.0]
            dense = {"dense_measured_ms": dense_ms, "top1_dense": statistics.mean(whole) if whole else None}
            runs[name] = {**about, **dense, "measured_ms": r["share"] * dense_ms}
        else:
            peers.append({**about, "name": name, "latency_ms": r["share"] * dense_ms, "setting": setting_of(about)})
    if runs:
        write(entries(runs, peers), out)


def _key(r: Record) -> str:
    return "/".join(str(r[k]) for k in ("network", "target", "method", "seed"))


def _speed(found: Record | None) -> list[str]:
    """What training costs in seconds, and the share of the solver in a training of 6 and of 15 epochs."""
    if not found:
        return []
    stages, shares = found["stages"], []
    for epochs in (6, 15):
        steps = epochs * 125
        config = default_stages(steps)
        dense_steps = config.steps * found["during"] + (steps - config.steps) * found["after"]
        share = config.T * found["solver_and_surgery_s_a_cycle"] / (dense_steps * found["dense_step_s"])
        shares.append(f"{100 * share:.1f}% of a training of {epochs} epochs ({config.T} cycles)")
    return [
        f"A step of IEE at 0.30, batch 64, one thread, over a dense one ({1000 * found['dense_step_s']:.0f} ms): "
        f"{found['during']:.2f} in the update period (Importance Estimation {stages['importance']:.2f}, Accuracy "
        f"Improvement {stages['accuracy']:.2f}, Reactivate & Explore {stages['explore']:.2f}, with all that IEE does), "
        f"{found['after']:.2f} after it. Solver and surgery: "
        f"{1000 * found['solver_and_surgery_s_a_cycle']:.0f} ms a cycle, {' and '.join(shares)}.", "",
    ]  # fmt: skip


def _margins(network: str, every: list[Record]) -> list[str]:
    said = []
    for target in TARGETS:
        top1 = {
            m: [r["top1"] for r in every if (r["network"], r["method"], r["target"]) == (network, m, target)]
            for m in METHODS
        }
        top1 = {m: found for m, found in top1.items() if found}
        means = {m: statistics.mean(v) for m, v in top1.items()}
        others = [m for m in top1 if not m.startswith("iee") and m != "uniform-next"]
        best = max(others, key=lambda m: means[m], default=None)
        for ours in ("iee", "iee-random", "iee-dense") if best else ():
            if ours not in top1:
                continue
            spread = max(statistics.stdev(top1[m]) if len(top1[m]) > 1 else 0.0 for m in (ours, best))
            gain = 100 * (means[ours] - means[best])
            said.append(
                f"At {target:.2f} {NAMES[ours]}, is {abs(gain):.2f} points {'above' if gain > 0 else 'below'} the best "
                f"of the others ({NAMES[best]}); the seeds' spread is {100 * spread:.2f} points."
            )
    return said


def _seconds(r: Record, every: list[Record]) -> float:
    """Of training, that of the dense network that it started from included; timing structures is not training."""
    own = float(r["seconds"]) - r.get("overhead", {}).get("measurement", 0.0)
    if r["method"] in ("uniform", "uniform-next", "iee", "iee-random"):
        return own
    start = (r["network"], "dense", 0.0, r["seed"])
    return own + sum(float(d["seconds"]) for d in every if (d["network"], d["method"], d["target"], d["seed"]) == start)


def _spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.2f}% ({100 * deviation:.2f})"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
