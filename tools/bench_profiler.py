"""Profile networks, then hold predicted against measured latency on pruned networks that calibration never saw.

    python tools/bench_profiler.py --out docs/results/profiler [--networks resnet50 ...] [--each 4] [--seconds 180]

For every network: a table is swept within the time given; the latency model is calibrated on the dense network
and a few random slim ones; other random structures are built, exported and timed in ONNX Runtime on one thread,
in turn with the dense network. Writes OUT.json with every figure and OUT.md to read. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from halp_iee import models, trace
from halp_iee.errors import TargetError
from halp_iee.latency import LatencyModel, sweep_plan
from halp_iee.latency.profile import profile_with_result
from halp_iee.measure import runtime
from halp_iee.run.clock import RuntimeClock
from halp_iee.solve import solve
from halp_profiler.devices import attached

FAMILIES = ("resnet50", "mobilenet_v2", "efficientnet_b0", "vgg11_bn", "densenet121", "regnet_x_400mf", "googlenet")
CALIBRATION = 4


@dataclass(frozen=True)
class Row:
    """One held-out network."""

    network: str
    structure: str
    fraction: float
    predicted_ms: float
    measured_ms: float

    @property
    def error(self) -> float:
        return self.predicted_ms / self.measured_ms - 1.0


@dataclass(frozen=True)
class Sweep:
    """How one network was profiled."""

    network: str
    kernels: int
    points: int
    exhaustive_points: int
    seconds: float
    held_out_error: float
    calibration_worst: float


def random_structure(graph, cost, rng: np.random.Generator, fraction: float, kind: str):
    """Units kept: `solved` as the solver would choose them for random scores, or `odd` any width whatever."""
    prunable = [g for g in graph.groups if g.prunable]
    if kind == "odd":
        widths = {g.name: int(rng.integers(max(1, g.size // 4), g.size + 1)) for g in prunable}
        return {g.name: np.sort(rng.choice(g.size, widths[g.name], replace=False)) for g in prunable}
    scores = {g.name: rng.random(g.size) for g in prunable}
    return solve(cost, scores, fraction * cost.dense_ms).keep


def one_network(name: str, seconds: float, each: int, folder: Path) -> tuple[Sweep, list[Row]]:
    torch.manual_seed(0)
    model = models.build(name)
    example = torch.randn(1, *models.default_input_shape(name))
    graph = trace(model, example)
    start = time.perf_counter()
    table, swept = profile_with_result(graph, "cpu", folder / f"{name}.jsonl", model=name, time_budget_s=seconds)
    took = time.perf_counter() - start
    exhaustive = sum(
        (r.c_in[1] - r.c_in[0] + 1) * (1 if r.kernel.diagonal else r.c_out[1] - r.c_out[0] + 1)
        for r in sweep_plan(graph)
    )
    raw, clock = LatencyModel(graph, table), RuntimeClock(graph, example)
    points = [(graph.full_widths, clock.dense_ms)]
    rng = np.random.default_rng(1)
    for i in range(CALIBRATION):
        keep = random_structure(graph, raw, rng, 0.3 ** ((i + 1) / CALIBRATION), "odd" if i % 2 else "solved")
        points.append((graph.widths(keep), clock(keep)))
    cost = raw.calibrate(points)
    assert cost.calibration is not None
    rows = []
    rng = np.random.default_rng(2)
    for i in range(each):
        fraction, kind = (0.3, 0.45, 0.6, 0.8)[i % 4], "odd" if i % 4 == 3 else "solved"
        try:
            keep = random_structure(graph, cost, rng, fraction, kind)
        except TargetError as error:
            print(f"{name} {fraction}: {error}", flush=True)
            continue
        measured_ms = clock(keep)
        rows.append(Row(name, kind, measured_ms / clock.dense_ms, cost.predict(graph.widths(keep)), measured_ms))
        print(f"{name:>16} {kind:>7} {rows[-1].fraction:.2f} of dense: {100 * rows[-1].error:+.1f}%", flush=True)
    sweep = Sweep(
        name, len(table.kernels), swept.measured + swept.resumed, exhaustive, took, swept.held_out_error,
        cost.calibration.worst,
    )  # fmt: skip
    return sweep, rows


def render(sweeps: list[Sweep], rows: list[Row], machine: dict[str, object]) -> str:
    errors = np.abs([r.error for r in rows])
    lines = [
        "# Predicted against measured latency", "",
        f"{machine['processor']}, {machine['cores']} cores, {machine['runtime']}, one thread, batch 1. "
        "Made by `tools/bench_profiler.py`.", "",
        f"{len(rows)} held-out pruned networks of {len(sweeps)} families: median error {100 * np.median(errors):.1f}%, "
        f"worst {100 * errors.max():.1f}%. Peak memory {machine['peak_gb']:.2f} GB.", "",
        "*solved*: widths as the solver chooses them for random scores. *odd*: every width drawn at random.", "",
        "| network | kernels | points | of the exhaustive grid | sweep s | held-out median | calibration's worst |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for s in sweeps:
        share = 100 * s.points / s.exhaustive_points
        lines.append(
            f"| {s.network} | {s.kernels} | {s.points} | {share:.2f}% | {s.seconds:.0f} "
            f"| {100 * s.held_out_error:.1f}% | {100 * s.calibration_worst:.1f}% |"
        )
    lines += ["", "| network | structure | of dense | predicted ms | measured ms | error |", "| --- " * 6 + "|"]
    lines += [
        f"| {r.network} | {r.structure} | {r.fraction:.2f} | {r.predicted_ms:.4g} | {r.measured_ms:.4g} "
        f"| {100 * r.error:+.1f}% |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(FAMILIES))
    parser.add_argument("--each", type=int, default=4, help="held-out networks of each family")
    parser.add_argument("--seconds", type=float, default=180.0, help="time for one sweep")
    parser.add_argument("--out", type=Path, required=True, help="where to write, without the ending")
    arguments = parser.parse_args()
    sweeps: list[Sweep] = []
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.networks:
            sweep, found = one_network(name, arguments.seconds, arguments.each, Path(folder))
            sweeps.append(sweep)
            rows += found
            host = attached()[0]
            machine = {
                "processor": host.label, "cores": dict(host.details).get("cores"),
                "runtime": " ".join(runtime.describe().values()),
                "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            }  # fmt: skip
            document = {"machine": machine, "sweeps": [asdict(s) for s in sweeps], "rows": [asdict(r) for r in rows]}
            arguments.out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
            arguments.out.with_suffix(".md").write_text(render(sweeps, rows, machine))


if __name__ == "__main__":
    main()
