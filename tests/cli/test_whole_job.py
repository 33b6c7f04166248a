"""The whole job from the command line, on a network that the package has never seen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import halp_iee
from halp_iee import models
from halp_iee.cli.main import run
from halp_iee.run.directory import sha256

KEYS = set(
    """
    model data method seed target_ms dense_ms predicted_ms measured_ms source fps_dense fps top1_dense top1
    params_dense params macs_dense macs train_flops_ratio wall_seconds solver gap artifact report
    """.split()  # noqa: SIM905 (a list of 23 names in quotes reads worse)
)

QUICK = ["--data", "digits", "--epochs", "3", "--time-budget", "4", "--latency-target", "0.5", "--out", "run", "--json"]


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    out = capsys.readouterr().out
    return json.loads(out)  # exactly one document, or this fails


def test_a_strangers_network_is_trained_slimmed_exported_measured_and_reported(
    network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["train", "--model", network, *QUICK])
    result = document(capsys)
    assert result.keys() >= KEYS
    assert code == (4 if result["measured_ms"] > result["target_ms"] else 0)
    assert result["measured_ms"] <= 1.1 * result["target_ms"]  # a busy machine may be a little off, and then says so
    assert result["params"] < result["params_dense"]
    assert result["macs"] < result["macs_dense"]
    assert 0 < result["train_flops_ratio"] < 1
    assert result["source"] == "measured"
    assert result["top1"] > 0.15  # better than chance after three epochs

    assert result["sha256"] == {Path(result[file]).name: sha256(Path(result[file])) for file in ("artifact", "onnx")}
    small = halp_iee.load(result["artifact"], models.build(network)).eval()
    assert sum(p.numel() for p in small.parameters()) == result["params"]

    import onnxruntime

    session = onnxruntime.InferenceSession(result["onnx"], providers=["CPUExecutionProvider"])
    images = torch.randn(1, 1, 32, 32)
    (got,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(got, small(images).detach().numpy(), rtol=1e-3, atol=1e-4)

    page = Path(result["report"]).read_text()
    assert "<html" in page
    assert 'src="http' not in page

    before = Path("run/result.json").read_bytes()
    assert run(["train", "--model", network, *QUICK]) == code  # finished: the result comes back
    assert document(capsys) == result
    assert Path("run/result.json").read_bytes() == before

    assert run(["train", "--model", network, *QUICK, "--seed", "1"]) == 2  # another run's directory
    assert "holds another run" in capsys.readouterr().err

    assert run(["export", "run", "--dynamic-batch", "--json"]) == 0
    assert document(capsys)["max_error"] < 1e-4
    assert run(["report", "run"]) == 0
    assert "staircase</h2>" in page
    assert {p.name for p in Path("run/hub").iterdir()} >= {"README.md", "model.onnx", "model.safetensors"}
    assert run(["watch", "run"]) == 0
    assert "finished" in capsys.readouterr().out
    assert run(["bench", "run", "run/dense.onnx", "--seconds", "0.2", "--json"]) in (0, 3)
    fps = {r["artifact"]: r["fps"] for r in document(capsys)["results"]}
    assert fps["run"] > fps["run/dense.onnx"]


def test_pruning_without_data_meets_the_latency_and_claims_no_accuracy(
    network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prune", "--model", network, "--input-shape", "1,32,32", "--latency-target", "0.6", "--time-budget", "4"]
    code = run([*command, "--out", "pruned", "--json"])
    result = document(capsys)
    assert code in (0, 4)
    assert result["top1"] is None
    assert result["top1_dense"] is None
    assert result["measured_ms"] <= 1.1 * result["target_ms"]


def test_pruning_trained_weights_with_data_and_fine_tuning(network: str, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    model = models.build(network)
    save_file(model.state_dict(), "weights.safetensors")
    command = ["prune", "--model", network, "--data", "digits", "--weights", "weights.safetensors"]
    run(
        [
            *command,
            "--time-budget",
            "4",
            "--latency-target",
            "0.6",
            "--finetune-epochs",
            "1",
            "--out",
            "pruned",
            "--json",
        ]
    )
    result = document(capsys)
    assert result["top1"] > 0.12
    assert result["train_seconds"] > 0


def test_ctrl_c_within_an_exec_of_a_library_still_exits_130(tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text(
        "from halp_iee.cli import main\nmain.cli.main = lambda **_: exec('raise KeyboardInterrupt')\nmain.main()\n"
    )
    done = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 130, done.stderr


@pytest.mark.parametrize("after", [3.0, 9.0, 16.0])
def test_ctrl_c_leaves_a_run_that_goes_on(network: str, after: float) -> None:
    command = [sys.executable, "-m", "halp_iee", "train", "--model", network, *QUICK]
    environment = {**os.environ, "HALP_IEE_TRACEBACK": ""}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as at a terminal
    )  # fmt: skip
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    if process.returncode in (0, 4):
        return  # it was quicker than we were
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert "goes on where it stopped" in err.splitlines()[-1]
    assert not list(Path("run").rglob("*.partial")) if Path("run").exists() else True
    again = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert again.returncode in (0, 4), again.stderr
    assert json.loads(again.stdout)["params"] > 0
