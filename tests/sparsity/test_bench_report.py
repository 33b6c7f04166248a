"""What the report of the sparse-training bench says of runs whose outcome is known."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

_SPEC = importlib.util.spec_from_file_location(
    "bench_sparse_training", Path(__file__).parents[2] / "tools" / "bench_sparse_training.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
bench = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(bench)


def run(top1: float, seed: int = 0, survival: tuple[tuple[int, float], ...] = ()) -> dict[str, Any]:
    events = [{"kind": "prune", "step_of_method": step, "survival": value} for step, value in survival]
    return {"top1": top1, "seed": seed, "steps": 1000, "events": events}


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ((3.0, 3.2, 2.9), "as published"),
        ((-3.0, -3.2, -2.9), "the reverse"),
        ((0.5, 0.4, 0.6), "not decided"),  # the seeds agree, but the test set cannot tell
        ((9.0, -3.0, 3.0), "not decided"),  # three points of mean, and the seeds do not agree
        ((3.0,), "as published"),
    ],
)
def test_an_ordering_is_claimed_only_beyond_twice_its_error(gaps: tuple[float, ...], verdict: str) -> None:
    worse = [run(0.85, seed) for seed in range(len(gaps))]
    better = [run(0.85 + gap / 100, seed) for seed, gap in enumerate(gaps)]
    other = run(0.1, seed=9)  # a seed that the other method lacks says nothing
    told = bench._told("a", "b", {("a", 0.9): [*better, other], ("b", 0.9): worse}, 0.9, images=2000)
    assert told.endswith(f"({len(gaps)} seed{'s' * (len(gaps) > 1)}: {verdict})")
    assert f"{sum(gaps) / len(gaps):+.2f}" in told


def test_survival_is_held_against_the_update_before_of_the_same_seed() -> None:
    rigl = [run(0.8, 0, ((100, 0.2), (300, 0.9))), run(0.8, 1, ((100, 0.99),))]
    iee = [run(0.8, 0, ((50, 0.1), (150, 0.5), (375, 0.8)))]
    assert bench._survival_above(iee, rigl) == (2, [0.5])
