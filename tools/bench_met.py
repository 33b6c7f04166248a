"""Is a latency met as it is measured? Prune networks to targets on this machine's CPU with the product itself, and
compare the final measurement, made afresh beside the dense network, with what was asked for.

Random weights, one thread: a latency does not depend on the weights. One case is a network and a target; finished
cases are kept, so the bench can be run in pieces.

    python tools/bench_met.py --work DIR [--seconds 200] [--tables DIR] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

CASES: tuple[tuple[str, tuple[int, int, int], str], ...] = (
    ("resnet20", (1, 32, 32), "0.3"), ("resnet20", (1, 32, 32), "0.6"),
    ("mobilenet_v2", (3, 96, 96), "0.5"), ("mobilenet_v2", (3, 96, 96), "0.75"),
    ("resnet18", (3, 96, 96), "0.3"), ("resnet18", (3, 96, 96), "0.6"),
    ("squeezenet1_1", (3, 96, 96), "0.5"), ("efficientnet_b0", (3, 96, 96), "0.6"),
    ("googlenet", (3, 96, 96), "0.4"), ("regnet_y_400mf", (3, 96, 96), "0.6"),
    ("densenet121", (3, 96, 96), "0.6"), ("resnet50", (3, 96, 96), "0.4"),
)  # fmt: skip
LOW, HIGH = 0.97, 1.0


def case(model: str, shape: tuple[int, int, int], target: str, work: Path, sweep_s: float) -> dict[str, Any]:
    """One run of the product: what it was asked for, measured and took; or how it refused."""
    from halp_iee import pipeline
    from halp_iee.errors import HalpError
    from halp_iee.run.job import DeviceChoice, Job
    from halp_iee.run.target import Target
    from halp_iee.train.recipe import Recipe

    table = work / f"{model}-{shape[-1]}.jsonl"
    job = Job(
        model=model, data=None, recipe=Recipe(), target=Target.parse(target), method="one-shot", dense=False,
        device=DeviceChoice(table=str(table), time_budget_s=sweep_s, source="measured"), input_shape=shape,
        criterion="magnitude_l2",
    )  # fmt: skip
    start = time.perf_counter()
    try:
        result = pipeline.prune(job, work / f"{model}-{target}").result
    except HalpError as error:
        return {"model": model, "size": shape[-1], "target": target, "refused": str(error)}
    return {
        "model": model, "size": shape[-1], "target": target, "dense_ms": result["dense_measured_ms"],
        "target_ms": result["target_ms"], "predicted_ms": result["predicted_ms"], "measured_ms": result["measured_ms"],
        "ratio": result["measured_ms"] / result["target_ms"], "unstable": result["unstable"],
        "wall_s": time.perf_counter() - start,
    }  # fmt: skip


def markdown(rows: list[dict[str, Any]]) -> str:
    from halp_profiler.devices import attached

    met = [row for row in rows if "ratio" in row and LOW <= row["ratio"] <= HIGH]
    lines = [
        "# Met as measured",
        "",
        "What `tools/bench_met.py` printed: networks pruned to a share of their dense latency, and the final network",
        "timed beside the dense one when all is done. The target is that share of the dense latency measured then.",
        "",
        f"{attached()[0].label}, {os.cpu_count()} cores, one thread, batch 1, Python {platform.python_version()};",
        "random weights, small inputs.",
        f"{len(met)} of {len(rows)} lie within [{LOW:g}, {HIGH:g}] of the target.",
        "",
        "| network | input | target | dense ms | target ms | predicted ms | measured ms | of target | s in all |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if "refused" in row:
            lines.append(f"| {row['model']} | {row['size']} | {row['target']} | {row['refused']} | | | | | |")
            continue
        mark = "" if LOW <= row["ratio"] <= HIGH else " outside"
        mark += ", unsteady" if row["unstable"] else ""
        lines.append(
            f"| {row['model']} | {row['size']} | {row['target']} | {row['dense_ms']:.3f} | {row['target_ms']:.3f} | "
            f"{row['predicted_ms']:.3f} | {row['measured_ms']:.3f} | {row['ratio']:.4f}{mark} | {row['wall_s']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where runs, tables and results are kept")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no further case after so long")
    parser.add_argument("--sweep-seconds", type=float, default=40.0)
    parser.add_argument("--only", nargs="+", default=None)
    parser.add_argument("--markdown", type=Path, default=None)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / "results.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(row["model"], row["target"]) for row in rows}
    start = time.perf_counter()
    for model, shape, target in CASES:
        if (model, target) in done or (options.only and model not in options.only):
            continue
        if time.perf_counter() - start > options.seconds:
            break
        rows.append(case(model, shape, target, options.work, options.sweep_seconds))
        print(rows[-1], flush=True)
        with kept.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    if options.markdown is not None:
        options.markdown.write_text(markdown(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
