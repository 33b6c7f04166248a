"""The page of trainings to a latency keeps its runs beside it, and a later report adds to them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

_SPEC = importlib.util.spec_from_file_location(
    "training_page", Path(__file__).parents[2] / "tools" / "training_page.py"
)  # fmt: skip
assert _SPEC is not None
assert _SPEC.loader is not None
page = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(page)


def run(method: str, seed: int, top1: float, share: float, **more: Any) -> dict[str, Any]:
    target = 0.0 if method == "dense" else 0.3
    return {"network": "resnet20", "target": target, "method": method, "seed": seed, "epochs": 6, "top1": top1,
            "share": share, "seconds": 10.0, **more}  # fmt: skip


def left(folder: Path, runs: list[dict[str, Any]], **files: Any) -> Path:
    folder.mkdir()
    (folder / "runs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in runs))
    for name, found in files.items():
        (folder / f"{name}.json").write_text(json.dumps(found))
    return folder


def test_a_later_report_adds_to_the_runs_and_the_last_measurement_of_each_counts(tmp_path: Path) -> None:
    out = tmp_path / "training.md"
    dense, halp = run("dense", 0, 0.9, 1.0), run("halp", 0, 0.8, 0.29, overhead={"measurement": 4.0})
    page.write_page(left(tmp_path / "a", [dense, halp], shares={"resnet20/0.3/halp/0": 0.31}), out)
    assert "80.00% (0.00) | 0.310 to 0.310 | 16 |" in out.read_text()  # 10 s less 4 of timing, and 10 of the dense one
    page.write_page(left(tmp_path / "b", [run("halp", 1, 0.7, 0.25), run("iee", 0, 0.9, 0.28)]), out)
    said = out.read_text()
    assert "| 2 | 75.00% (7.07) | 0.250 to 0.310 |" in said
    assert "IEE, from scratch, is 15.00 points above the best of the others (HALP" in said
    page.write_page(left(tmp_path / "c", []), out)
    assert out.read_text() == said


@pytest.mark.parametrize("again", [False, True])
def test_what_a_step_takes_stays_until_it_is_timed_again(tmp_path: Path, again: bool) -> None:
    out = tmp_path / "training.md"
    stages = {"importance": 0.5, "accuracy": 0.4, "explore": 1.9}
    found = {"dense_step_s": 0.1, "during": 0.5, "after": 0.3, "stages": stages, "solver_and_surgery_s_a_cycle": 0.1}
    runs = [run("iee", 0, 0.9, 0.28)]
    page.write_page(left(tmp_path / "a", runs, speed={"resnet20": found}), out)
    later = {"speed": {"resnet20": {**found, "dense_step_s": 0.2}}} if again else {}
    page.write_page(left(tmp_path / "b", runs, **later), out)
    assert f"over a dense one ({200 if again else 100} ms)" in out.read_text()
