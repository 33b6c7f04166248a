"""Networks whose code does more than to compute: it prints, it keeps tensors, it has heads for training only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halp_iee.cli.main import run
from halp_iee.run.job import Job
from halp_iee.train.recipe import Recipe


def variant(network: str, function: str) -> str:
    return network.replace(":build", f":{function}")


def test_what_a_network_prints_goes_to_stderr_and_stdout_holds_the_result_alone(
    network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["graph", "--model", variant(network, "talks"), "--input-shape", "1,32,32"]
    assert run([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["groups"]
    assert "in the builder" in captured.err
    assert "in forward" in captured.err
    assert run(arguments) == 0
    assert capsys.readouterr().out.startswith("group")


def test_a_head_for_training_only_does_not_stand_in_the_way(network: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--model", variant(network, "with_auxiliary_head"), "--data", "digits", "--epochs", "1"]
    assert run([*arguments, "--gpu", "titanv", "--latency-target", "0.95", "--out", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measured_ms"] is None
    assert Path("run/dense.onnx").is_file()


@pytest.mark.parametrize("command", ["train", "prune"])
def test_a_network_with_nothing_to_prune_is_refused_before_anything_is_timed(
    network: str, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    before = set(Path(".").rglob("*"))
    model = variant(network, "nothing_to_prune")
    assert run([command, "--model", model, "--data", "digits", "--latency-target", "1"]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("halp-iee: nothing in this network can be pruned")
    assert set(Path(".").rglob("*")) - before <= {Path("stranger.py"), *Path(".").rglob("__pycache__*")}


def test_networks_of_one_file_have_runs_of_their_own() -> None:
    jobs = [Job(model=f"nets.py:{name}", data="digits", recipe=Recipe()) for name in ("small", "large")]
    assert jobs[0].default_directory() != jobs[1].default_directory()


def test_bench_times_a_network_at_the_shape_that_is_asked_for(network: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["bench", network, "--input-shape", "1,16,16", "--seconds", "0.1", "--json"])
    (row,) = json.loads(capsys.readouterr().out)["results"]
    assert code in (0, 3)
    assert row["median_ms"] > 0
