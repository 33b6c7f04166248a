"""What the report of the sparse-training bench says of runs whose outcome is known."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

_SPEC = importlib.util.spec_from_file_location(
    "sparse_training_page", Path(__file__).parents[2] / "tools" / "sparse_training_page.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
page = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(page)


def run(top1: float, seed: int = 0, survival: tuple[tuple[int, float], ...] = ()) -> dict[str, Any]:
    updates = [["prune", step, None, value, 0.5] for step, value in survival]
    return {"top1": top1, "seed": seed, "steps": 1000, "updates": updates}


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
    told = page._told("a", "b", {("a", 0.9): [*better, other], ("b", 0.9): worse}, 0.9, images=2000)
    assert told.endswith(f"({len(gaps)} seed{'s' * (len(gaps) > 1)}: {verdict})")
    assert f"{sum(gaps) / len(gaps):+.2f}" in told


def test_survival_is_held_against_the_update_before_of_the_same_seed() -> None:
    rigl = [run(0.8, 0, ((100, 0.2), (300, 0.9))), run(0.8, 1, ((100, 0.99),))]
    iee = [run(0.8, 0, ((50, 0.1), (150, 0.5), (375, 0.8)))]
    assert page._survival_above(iee, rigl) == (2, [0.5])


def record(method: str, seed: int, top1: float) -> dict[str, Any]:
    training = {"model": "resnet20", "steps": 10, "epochs": 1, "batch_size": 4, "precision": "fp32", "data": "digits"}
    event = {"kind": "update", "step_of_method": 5, "iou": 0.5, "survival": 1 / 3, "exploration_rate": 0.25}
    found = {"top1": top1, "seconds": 1.23, "events": [event], "sparsity_by_layer": {"conv": 0.9}}
    return {**training, "method": method, "sparsity": 0.9, "seed": seed, **found}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(page, "OUT", tmp_path / "page.md")
    monkeypatch.setattr(page, "RECORDS", tmp_path / "page.jsonl")
    return tmp_path


def test_runs_stay_beside_the_page_and_a_later_report_adds_to_them(folder: Path) -> None:
    page.write_page([record("set", 0, 0.8), record("set", 1, 0.9)], ["static", "set"])
    page.write_page([record("set", 1, 0.9), record("static", 0, 0.7)], ["static", "set"])
    said = (folder / "page.md").read_text()
    assert "| static | 90% | 1 | 70.00 | 0.250 | 0.333 | 0.333 |" in said
    assert "| set | 90% | 2 | 85.00 ± 7.07 | 0.250 | 0.333 | 0.333 |" in said
    assert "set over static +10.00" in said
    assert said.index("| static") < said.index("| set")
    page.write_page([], ["static", "set"])
    assert (folder / "page.md").read_text() == said
    assert {p.name for p in folder.iterdir()} == {"page.md", "page.jsonl"}  # no figure without IEE


def test_a_summary_of_runs_that_were_lost_stands_until_there_are_as_many(folder: Path) -> None:
    lost = {k: record("set", 0, 0.0)[k] for k in ("model", "steps", "epochs", "batch_size", "precision", "data")}
    lost |= {"method": "set", "sparsity": 0.9, "seeds": 2, "top1_mean": 50.0, "top1_std": 1.0, "exploration_rate": 0.1,
             "survival": None}  # fmt: skip
    page.RECORDS.write_text(json.dumps(lost) + "\n")
    for seed, said in ((0, "| set * | 90% | 2 | 50.00 ± 1.00"), (1, "| set | 90% | 2 | 80.00 ± 0.00")):
        page.write_page([record("set", seed, 0.8)], ["set"])
        assert said in (folder / "page.md").read_text()
    assert "seeds" not in page.RECORDS.read_text()


def test_all_sparsities_together_count_every_pair_of_the_same_sparsity_and_seed(folder: Path) -> None:
    def at(method: str, sparsity: float, seed: int, top1: float) -> dict[str, Any]:
        return {**record(method, seed, top1), "sparsity": sparsity}

    fresh = [at("static", s, seed, 0.5) for s in (0.8, 0.9) for seed in (0, 1)]
    fresh += [at("set", 0.8, 0, 0.60), at("set", 0.8, 1, 0.62), at("set", 0.9, 0, 0.64)]
    page.write_page(fresh, ["static", "set"])
    said = next(line for line in (folder / "page.md").read_text().splitlines() if line.startswith("- All"))
    assert "set over static +12.00" in said
    assert "(3 pairs: as published)" in said
