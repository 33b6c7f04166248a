"""The evidence script: it runs where there is no GPU, and what fails costs one part and one line."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "gpu_evidence.sh"


def run(*arguments: object, path: Path | None = None, seconds: float = 110) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [str(SCRIPT), *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=seconds
    )


def test_every_part_runs_in_tiny_sizes_and_is_summed_up(tmp_path):
    out = tmp_path / "with a blank"
    done = run(out, "--tiny", "--cpu", "--seconds", 100)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((out / "evidence.json").read_text())
    assert [one["why"] for one in found["parts"]] == [""] * 7
    rows = found["rows"]
    assert all(rows[one["name"]] for one in found["parts"])
    for row in rows["predicted-b1-fp32"]:
        if row["role"] == "held-out":
            assert row["error"] == pytest.approx(row["predicted_ms"] / row["measured_ms"] - 1, abs=1e-4)
    assert [row["network"] for row in rows["solved-b1-fp32"]] == [
        "dense", "joint 0.55", "joint 0.3", "halp 0.55", "halp 0.3"]  # fmt: skip
    for row in rows["solved-b1-fp32"]:
        assert row["fps"] == pytest.approx(1000 / row["measured_ms"], rel=1e-3)
    joint = {row["target"]: row for row in rows["solved-b1-fp32"] if row["network"].startswith("joint")}
    dense_ms = rows["solved-b1-fp32"][0]["predicted_ms"]
    for target, row in joint.items():
        # On a busy machine what no channel changes may take more than the target leaves.
        assert row["predicted_ms"] <= row["budget_ms"] * 1.001
        assert row["budget_ms"] == pytest.approx(target * dense_ms, rel=1e-4) or row["floor_is_above_target"]
    assert [row["variant"] for row in rows["training"]] == ["dense", "masked", "slim"]
    assert {"dense", "condensed"} <= set(rows["layers"][0]["ms"])
    assert rows["iee"][1]["parameters"] < rows["iee"][0]["parameters"]
    table = out / "tables" / "resnet20-b1-fp32.jsonl"
    assert found["tables"] == [
        {"file": table.name, "points": rows["sweep-b1-fp32"][0]["points"], "bytes": table.stat().st_size}
    ]
    page = (out / "evidence.md").read_text()
    assert "without a GPU" in page
    assert all(f"| {one['name']} |" in page for one in found["parts"])
    assert not list(out.glob("parts/*.log"))
    assert sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) < 1_000_000


def test_without_a_gpu_the_large_sizes_are_refused_at_once(tmp_path):
    since = time.monotonic()
    done = run(tmp_path / "out", "--cpu")
    assert done.returncode == 3
    assert "no GPU" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - since < 60


def without(folder: Path, *packages: str) -> Path:
    """A folder that, on the path, makes a Python of its own find none of these packages."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {packages!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    return folder


def test_a_package_that_is_missing_costs_the_parts_that_need_it_a_line_each(tmp_path):
    hidden = without(tmp_path / "hidden", "scipy")
    out = tmp_path / "out"
    done = run(out, "--tiny", "--cpu", "--only", "sweep-b1-fp32", "training", path=hidden)
    assert done.returncode == 1
    found = {one["name"]: one["why"] for one in json.loads((out / "evidence.json").read_text())["parts"]}
    assert found["environment"] == ""
    for name in ("sweep-b1-fp32", "training"):
        assert "scipy" in found[name]
        assert "\n" not in found[name]


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("gpu_evidence.__main__")


def _rows_then(what):
    def part(one):
        one.row(step=1, nan=float("nan"), figures=1.23456789)
        what()

    return part


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (lambda: time.sleep(60), "cut off after 2 s; the rows until then are kept"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "ended by SIGKILL"),
        (lambda: os._exit(7), "ended with exit code 7"),
        (lambda: subprocess.run(["sleep", "60"], check=True), "cut off after 2 s; the rows until then are kept"),
        (lambda: 1 / 0, "ZeroDivisionError: division by zero (test_gpu_evidence.py"),
        (lambda: None, ""),
    ],
)
def test_however_a_part_ends_its_rows_stay_and_the_next_can_run(parts, tmp_path, monkeypatch, what, why):
    (tmp_path / "parts").mkdir()
    (tmp_path / "tables").mkdir()
    monkeypatch.setattr(parts.Planned, "run", lambda self, part: _rows_then(what)(part))
    since = time.monotonic()
    ended = parts.run_part(parts.Planned("one", 2, "", ""), tmp_path, 2, True, True)
    assert ended.why.startswith(why)
    assert bool(ended.why) == bool(why)
    assert time.monotonic() - since < 15
    parts.words.write(tmp_path, [ended])
    assert json.loads((tmp_path / "evidence.json").read_text())["rows"]["one"] == [
        {"step": 1, "nan": None, "figures": 1.23457}
    ]


def test_a_line_that_was_cut_off_is_left_out(parts, tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "one.jsonl").write_text('{"a": 1}\n{"a": ')
    assert parts.words.rows_of(tmp_path, "one") == [{"a": 1}]


def test_the_parts_fit_into_nine_minutes_and_every_one_is_tried_in_the_tiny_plan(parts):
    assert {(one.module, one.function) for one in parts.plan()} == {
        (one.module, one.function) for one in parts.tiny_plan()
    }
    asked = {(one.options["batch"], one.options["precision"]) for one in parts.plan() if one.function == "sweep"}
    assert asked == {(batch, precision) for batch in (1, 256) for precision in ("fp32", "tf32", "fp16")}


def test_the_network_for_machines_without_torchvision_is_the_same(parts):
    """Same names, shapes and outputs for the same weights, so that a table of one serves the other."""
    torchvision = pytest.importorskip("torchvision")
    resnet = importlib.import_module("gpu_evidence.resnet")
    theirs, ours = torchvision.models.resnet50(weights=None).eval(), resnet.ResNet50().eval()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_without_torchvision_pydantic_and_the_driver_package_nothing_is_lost_but_iee(tmp_path):
    """What is installed on the machine this is for: torch, onnx, onnxruntime, scikit-learn, accelerate, pandas."""
    hidden = without(tmp_path / "hidden", "torchvision", "pydantic", "pynvml", "onnxscript", "timm", "ortools")
    out = tmp_path / "out"
    done = run(out, "--tiny", "--cpu", path=hidden)
    found = {one["name"]: one["why"] for one in json.loads((out / "evidence.json").read_text())["parts"]}
    assert [name for name, why in found.items() if why] in ([], ["iee"]), found
    assert done.returncode == (1 if found["iee"] else 0)


def test_resnet50_is_built_where_torchvision_is_broken(parts, monkeypatch):
    tables = importlib.import_module("gpu_evidence.tables")
    monkeypatch.setattr(tables.models, "build", lambda name: (_ for _ in ()).throw(RuntimeError("operator nms")))
    assert sum(p.numel() for p in tables.resnet50().parameters()) == 25_557_032
