"""Questions beside the target: limits on the widths, several budgets, the least latency for an importance."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import halp_iee
from halp_iee import models, trace
from halp_iee.cli.main import run
from halp_iee.errors import TargetError, UsageError
from halp_iee.latency import LatencyModel
from halp_iee.latency.profile import profile_network
from halp_iee.run.job import Job
from halp_iee.run.question import Budget, Question, answerer
from halp_iee.run.target import Target
from halp_iee.slim import read_recipe
from halp_iee.train.recipe import Recipe
from halp_profiler.devices import find


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 48, 3, 2, 1), nn.BatchNorm2d(48), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(48, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU())
        self.c = nn.Conv2d(64, 96, 3, 2, 1)
        self.head = nn.Linear(96, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.c(self.b(self.a(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A graph, its costs at batch 64 and 1 on a modelled device, the second's table, and scores."""
    folder = tmp_path_factory.mktemp("tables")
    graph = trace(Net(), torch.randn(1, 3, 64, 64))
    tables = {
        batch: profile_network(graph, find("titanv"), folder / f"b{batch}.jsonl", model="net", batch=batch)
        for batch in (64, 1)
    }
    costs = {batch: LatencyModel(graph, table) for batch, table in tables.items()}
    rng = np.random.default_rng(0)
    scores = {g.name: rng.gamma(0.5, 1.0, g.size) for g in graph.groups if g.prunable}
    return graph, costs, folder / "b1.jsonl", scores


def test_two_batches_of_one_device_are_held_by_one_network(asked) -> None:
    graph, costs, table, scores = asked
    for share in (0.85, 0.95):
        question = Question(also=(Budget(str(table), Target(share, "fraction")),))
        answer = answerer(question, graph, costs[64], scores, "joint")(0.7 * costs[64].dense_ms)
        assert costs[64].predict(answer.widths) <= 0.7 * costs[64].dense_ms
        assert costs[1].predict(answer.widths) <= share * costs[1].dense_ms
        assert answer.latency_ms == pytest.approx(costs[64].predict(answer.widths))


def test_an_importance_is_kept_at_a_latency_under_which_the_target_keeps_less(asked) -> None:
    graph, costs, _, scores = asked
    whole = sum(float(values.sum()) for values in scores.values())
    plain = answerer(Question(), graph, costs[64], scores, "joint")
    for share in (0.5, 0.8, 0.95):
        answer = answerer(Question(keep_importance=share), graph, costs[64], scores, "joint")(math.nan)
        assert answer.value >= share * whole * (1 - 1e-9)
        try:
            under = plain(0.98 * answer.latency_ms)
        except TargetError:
            continue
        assert under.value < share * whole


@pytest.mark.parametrize("step", [1, 8])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.6])
def test_limits_hold_in_every_group(asked, step: int, fraction: float) -> None:
    graph, costs, _, scores = asked
    question = Question(min_fraction=fraction, width_step=step)
    answer = answerer(question, graph, costs[64], scores, "joint")(0.9 * costs[64].dense_ms)
    for name, values in scores.items():
        assert answer.widths[name] >= max(1, fraction * len(values) - 1e-9)
        assert answer.widths[name] % step == 0 or answer.widths[name] == len(values)


@pytest.mark.parametrize("text", ["", "=", "=0.5", "table", "table=", "table=fast", "table=-1ms"])
def test_what_is_no_budget_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(UsageError):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"min_fraction": float("nan")}, "min_fraction is nan"),
        ({"min_fraction": 1.5}, "min_fraction is 1.5"),
        ({"width_step": 0}, "width_step is 0"),
        ({"keep_importance": 0.0}, "keep_importance is 0.0"),
        ({"keep_importance": float("nan")}, "keep_importance is nan"),
        ({"keep_importance": 0.5, "also": (Budget("t", Target(0.5, "fraction")),)}, "further budgets"),
    ],
)
def test_questions_that_make_no_sense_are_refused_with_the_value(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Question(**settings)  # type: ignore[arg-type]


def test_a_job_says_what_was_asked_and_a_plain_one_says_what_it_always_did() -> None:
    plain = Job(model="resnet20", data=None, recipe=Recipe())
    assert "question" not in plain.config()
    asked_for = Job(model="resnet20", data=None, recipe=Recipe(), question=Question(also=(Budget.parse("a=b=20ms"),)))
    assert json.loads(json.dumps(asked_for.config()))["question"]["also"] == ["a=b=20ms"]


def test_the_commands_take_and_refuse_them(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    base = ["--model", "resnet20", "--input-shape", "1,32,32", "--gpu", "titanv"]
    table = tmp_path / "b8.jsonl"
    assert run(["profile", "--model", "resnet20", "--input-shape", "1,32,32", "--gpu", "titanv", "--batch", "8",
                "--out", str(table)]) == 0  # fmt: skip
    capsys.readouterr()
    out = ["--min-fraction", "0.2", "--out", str(tmp_path / "run"), "--json"]
    assert run(["prune", *base, "--latency-target", "0.9", "--also", f"{table}=0.92", *out]) == 0
    assert json.loads(capsys.readouterr().out)["predicted_ms"] > 0
    for wrong in (["--keep-importance", "0.8", "--latency-target", "0.5"], ["--also", "x"], ["--also", f"{table}=2"]):
        assert run(["prune", *base, *wrong, "--out", str(tmp_path / "other")]) == 2
        assert not (tmp_path / "other").exists()
    assert run(["frontier", *base, "--points", "3", "--keep-importance", "0.9", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["fastest"]["least_ms"] <= document["fastest"]["latency_ms"]


def test_a_branch_goes_whole_from_the_command_line_to_the_files(tmp_path: Path, capsys, monkeypatch) -> None:
    import onnx

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    base = ["--model", "resnet20", "--input-shape", "1,32,32", "--gpu", "titanv"]
    ask = ["prune", *base, "--latency-target", "0.3", "--out", str(tmp_path / "run"), "--json"]
    assert run([*ask, "--allow-block-removal", "--solver", "halp"]) == 2
    capsys.readouterr()
    assert run([*ask, "--allow-block-removal", "--fresh"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["predicted_ms"] <= result["target_ms"] * (1 + 1e-9)
    kinds = [node.op_type for node in onnx.load(result["onnx"]).graph.node]
    recipe = read_recipe(result["artifact"])
    assert len(recipe["removed"]) > 0
    # Two convolutions and one addition go with each.
    assert kinds.count("Conv") == 19 + 2 - 2 * len(recipe["removed"])
    assert kinds.count("Add") == 9 - len(recipe["removed"])
    loaded = halp_iee.load(result["artifact"], models.build("resnet20", in_channels=1))
    assert sum(p.numel() for p in loaded.parameters()) == result["params"]
