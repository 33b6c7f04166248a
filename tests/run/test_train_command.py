"""`halp-iee train` beyond its defaults: HALP, several processes, switches, and what it refuses before it begins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

from halp_iee import models
from halp_iee.cli.main import run
from tests.cli.test_bad_input import complaint

QUICK = ["--data", "digits", "--epochs", "2", "--time-budget", "4", "--latency-target", "0.6", "--out", "run", "--json"]


def test_halp_from_its_own_dense_network_with_every_figure_of_its_cost(
    network: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = run(["train", "--model", network, "--method", "halp", "--steps", "3", "--interval", "4", *QUICK])
    result = json.loads(capsys.readouterr().out)
    assert code in (0, 4)
    assert result["method"] == "halp"
    assert result["params"] < result["params_dense"]
    assert result["measured_ms"] <= 1.1 * result["target_ms"]
    stages = result["train_cost"]["stages"]
    assert set(stages) == {"descend", "train", "dense"}
    assert stages["descend"]["steps"] == 12
    assert result["train_flops_ratio"] > 1  # the dense training is part of its price
    kinds = [json.loads(line)["event"] for line in Path("run/slim/events.jsonl").read_text().splitlines()]
    assert kinds.count("prune") == 3
    assert "--method halp" in Path("run/report.html").read_text()


def test_two_processes_make_one_run(network: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "halp_iee"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = ["train", "--model", network, "--no-dense", *QUICK]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    result = json.loads(done.stdout)  # one document, from the first process alone
    assert result["params"] < result["params_dense"]
    events = [json.loads(line) for line in Path("run/slim/events.jsonl").read_text().splitlines()]
    assert [e["epoch"] for e in events if e["event"] == "epoch"] == [1, 2]
    assert result["train_cost"]["stages"]["train"]["steps"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--H", "900"], 2, "does not fit into the training"),
        (["--method", "halp", "--interval", "900"], 2, "does not fit into the training"),
        (["--method", "halp", "--grow", "random"], 2, "no setting 'grow'"),
        (["--interval", "3"], 2, "no setting 'interval'"),
        (["--importance", "charm"], 2, "charm"),
        (["--omega-start", "2"], 2, "update budget"),
        (["--J", "-1"], 2, "J"),
        (["--grow", "sideways"], 2, "grow"),
        (["--weights", "other.safetensors"], 1, "other.safetensors"),
        (["--recipe", "typo.json"], 2, "did you mean 'label_smoothing'"),
        (["--data", "imagefolder:pictures"], 1, "holds no image"),
        (["--data", "imagefolder:broken"], 1, "2.png"),
        (["--recipe", "phases.json"], 2, "leaves no second phase"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_timed(
    network: str, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str,
) -> None:  # fmt: skip
    weights = models.build(network).state_dict()
    weights["head.weight"] = weights["head.weight"][:7].contiguous()
    save_file(weights, "other.safetensors")
    Path("typo.json").write_text('{"label_smothing": 0.1}')
    Path("phases.json").write_text('{"informative_after": 2}')
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (Path("pictures") / part / name).mkdir(parents=True)
            folder = Path("broken") / part / name
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("L", (32, 32), 40 * i).save(folder / f"{i}.png")
    cut = Path("broken/train/dog/2.png")
    cut.write_bytes(cut.read_bytes()[:-30])
    got = run(["train", "--model", network, *QUICK[:-1], *arguments])
    assert words in complaint(capsys, got, code)
    assert not Path("tables").exists()
    assert not Path("run/calibration.json").exists()


def test_a_checkpoint_of_another_network_or_table_is_refused(
    network: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quick = [*QUICK, "--latency-target", "0.85"]  # also above the floor that a busy machine's timings leave
    code = run(["train", "--model", network, *quick])
    assert code in (0, 4), capsys.readouterr().err
    capsys.readouterr()
    Path("run/result.json").unlink()
    checkpoint = Path("run/dense/checkpoint.safetensors")
    raw = checkpoint.read_bytes()
    checkpoint.write_bytes(raw.replace(b"halp-iee checkpoint 2", b"halp-iee checkpoint 9"))
    assert "checkpoint 9" in complaint(capsys, run(["train", "--model", network, *quick]), 1)
    checkpoint.write_bytes(Path("run/slim/checkpoint.safetensors").read_bytes())
    assert "another run" in complaint(capsys, run(["train", "--model", network, *quick]), 1)
    checkpoint.write_bytes(raw)
    points = json.loads(Path("run/calibration.json").read_text())
    for point in points:
        point["measured_ms"] *= 3  # as if the machine, and so the table, were another
    Path("run/calibration.json").write_text(json.dumps(points))
    assert "latency table" in complaint(capsys, run(["train", "--model", network, *quick]), 1)
