"""The diagnosis of a network: facts against plain recomputation, on a modelled device."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from halp_iee import trace
from halp_iee.cli.main import run
from halp_iee.doctor import diagnose
from halp_iee.doctor.diagnosis import curve_ms
from halp_iee.doctor.macs import MacCost
from halp_iee.doctor.page import write_diagnosis, write_frontier
from halp_iee.doctor.words import sentences
from halp_iee.errors import ArtifactError
from halp_iee.graph.records import ChannelGroup, Width
from halp_iee.latency import LatencyModel
from halp_iee.latency.profile import missing_from, profile_network
from halp_iee.measure.flops import count
from halp_iee.progress import Silent
from halp_iee.run import stages
from halp_iee.run.job import DeviceChoice, Job
from halp_iee.run.target import Target
from halp_iee.train.recipe import Recipe
from halp_profiler.devices import find
from halp_profiler.kernel import Kernel
from tests.solve.fakes import TableCost


class Curve:
    """A layer whose latency is a list over the output's channels."""

    def __init__(self, name, values):
        self.name, self.values = name, np.asarray(values, float)
        self.kernel = Kernel("conv", (8, 8), (1, 1), (1, 1), (0, 0))
        self.c_in, self.c_out = Width((), 3), Width(((name, len(values), 1),))

    def ms(self, c_in, c_out):
        return self.values[np.asarray(c_out) - 1] + 0.0 * np.asarray(c_in)


def one_group(values, fixed_ms=0.0):
    cost = TableCost((Curve("a", values),), fixed_ms, {"a": len(values)})
    return cost, {"a": np.arange(len(values), 0, -1.0)}


def test_a_group_just_above_a_step_is_named_with_the_channels_to_drop():
    values = [1.0] * 16 + [2.0] * 16 + [3.0, 3.0]
    cost, scores = one_group(values)
    (step,) = diagnose(cost, scores, 2.5).steps
    assert (step.group, step.drop, step.saves_ms) == ("a", 2, pytest.approx(1.0))


def test_a_smooth_layer_has_neither_steps_nor_traps():
    cost, scores = one_group(np.linspace(1.0, 3.0, 40))
    found = diagnose(cost, scores, 2.0)
    assert found.steps == found.traps == ()
    assert any("No group sits" in line for line in sentences("net", found))


def test_traps_are_the_widths_slower_than_a_wider_one():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.uniform(1.0, 2.0, int(rng.integers(2, 20)))
        cost, scores = one_group(values)
        found = diagnose(cost, scores, values.max() * 1.5)
        slow = [k for k in range(len(values)) if values[k] > values[k:].min() + 0.001 * values[-1]]
        assert found.trapped.get("a", 0) == len(slow)
        for trap in found.traps:
            assert trap.loses_ms == pytest.approx(max(values[k] - values[k:].min() for k in slow))
            assert values[trap.wide - 1] < values[trap.narrow[0] - 1 : trap.narrow[1]].max()


def test_a_target_under_the_floor_is_said_with_the_floor():
    cost, scores = one_group([2.0, 3.0, 4.0], fixed_ms=1.0)
    found = diagnose(cost, scores, 2.0)
    assert not found.reachable
    assert found.floor_ms == pytest.approx(3.0)
    assert found.fixed_ms == pytest.approx(1.0)
    assert any("under the floor" in line and "3.0003ms" in line for line in sentences("net", found))


def test_frozen_groups_are_listed_with_their_reason():
    cost, scores = one_group([1.0, 2.0])
    groups = (ChannelGroup("a", 2, (), False, "it is the output"),)
    found = diagnose(cost, scores, 2.0, groups)
    assert found.frozen == (("a", 2, "it is the output"),)
    assert found.fixed_ms == pytest.approx(found.dense_ms)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.b = nn.Conv2d(24, 24, 3, 1, 1, groups=24)
        self.c = nn.Conv2d(48, 40, 3, 2, 1)
        self.head = nn.Linear(40, 10)

    def forward(self, x):
        x = self.a(x)
        return self.head(torch.relu(self.c(torch.cat([x, self.b(x)], 1))).mean((2, 3)))


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    graph = trace(Net(), torch.randn(1, 3, 32, 32))
    path = tmp_path_factory.mktemp("tables") / "titanv.jsonl"
    return graph, LatencyModel(graph, profile_network(graph, find("titanv"), path, model="net"))


def test_macs_of_the_doctor_are_those_of_the_counter(real):
    graph, cost = real
    rng = np.random.default_rng(0)
    for _ in range(10):
        widths = {g.name: int(rng.integers(1, g.size + 1)) for g in graph.groups if g.prunable}
        assert MacCost(cost).predict(widths) * 1e6 == pytest.approx(count(graph, widths).macs)


def test_macs_of_convolutions_that_keep_their_groups_are_those_of_the_slim_network(tmp_path):
    class Coarse(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.g = nn.Conv2d(3, 64, 3, 2, 1), nn.Conv2d(64, 96, 3, padding=1, groups=2)
            self.t = nn.ConvTranspose2d(96, 64, 2, 2, groups=2)
            self.head = nn.Linear(64, 10)

        def forward(self, x):
            return self.head(torch.relu(self.t(torch.relu(self.g(torch.relu(self.a(x)))))).mean((2, 3)))

    graph = trace(Coarse().eval(), torch.randn(1, 3, 16, 16))
    assert graph.structure.kept_groups == {"g": 2, "t": 2}
    cost = LatencyModel(graph, profile_network(graph, find("titanv"), tmp_path / "t.jsonl", model="net"))
    rng = np.random.default_rng(0)
    for _ in range(5):
        keep = {g.name: range(int(rng.integers(1, g.size + 1))) for g in graph.groups if g.prunable}
        widths = graph.widths(keep)
        small = graph.slim(keep)
        alone = trace(small, torch.randn(1, 3, 16, 16))
        macs = MacCost(cost).predict(widths) * 1e6
        assert macs == pytest.approx(count(graph, widths).macs)
        assert macs == pytest.approx(count(alone, {}).macs)


def test_curves_are_what_the_model_predicts(real):
    graph, cost = real
    for group in graph.groups:
        if group.prunable:
            curve = curve_ms(cost, group.name, group.size)
            for k in (1, group.size // 2, group.size):
                assert cost.predict({group.name: k}) - cost.dense_ms == pytest.approx(curve[k - 1] - curve[-1])


def test_a_diagnosis_is_plain_json_and_its_page_loads_nothing(real, tmp_path):
    graph, cost = real
    scores = {g.name: np.ones(g.size) for g in graph.groups if g.prunable}
    found = diagnose(cost, scores, 0.97 * cost.dense_ms, graph.groups, device="x<script>", batch=1)
    assert found.reachable
    assert found.latency_ms <= 0.97 * cost.dense_ms
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["source"] == "modelled"
    page = write_diagnosis(tmp_path / "d.html", "net", found, {"a.0": [1.0, 2.0]}).read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert "x<script>" not in page
    before, bars = page.split('<div class="row">', 1)
    assert before.endswith('<div class="rows">')  # the grid without which the bars have no width
    assert bars.count('<div class="row">') == min(40, len(found.layers)) - 1
    rows = [
        {"latency_ms": 1.0, "importance": 0.2, "gap": 0.0},
        {"latency_ms": 2.0, "importance": 1.0, "gap": 0.01},
    ]
    assert "<svg" in write_frontier(tmp_path / "f.html", "t", "n", 2.0, rows).read_text()
    with pytest.raises(ArtifactError):
        write_frontier(tmp_path / "nowhere" / "f.html", "t", "n", 2.0, rows)


def test_the_command_says_it_in_words_in_json_and_in_a_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    page = tmp_path / "doctor.html"
    base = ["doctor", "--model", "resnet20", "--gpu", "titanv"]
    assert run([*base, "--latency-target", "0.9", "--html", str(page), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["reachable"]
    assert document["source"] == "modelled"
    assert page.is_file()
    assert run([*base, "--latency-target", "0.05"]) == 4
    assert "under the floor" in capsys.readouterr().out
    assert run([*base, "--importance", "taylor_bn"]) == 2
    assert "magnitude" in capsys.readouterr().err


def test_a_frontier_on_two_tables_says_what_every_point_takes_on_both(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    large = tmp_path / "large.jsonl"
    base = ["--model", "resnet20", "--gpu", "titanv", "--width-step", "8"]
    assert run(["profile", *base[:-2], "--batch", "64", "--out", str(large)]) == 0
    page = tmp_path / "f.html"
    both = ["frontier", *base, "--points", "3", "--also", f"{large}=0.5", "--html", str(page)]
    capsys.readouterr()
    assert run([*both, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    ((label, held_ms),) = document["also"].items()
    assert label == f"{large}=0.5"
    assert all(0.0 < point["also_ms"][label] <= held_ms * (1 + 1e-9) for point in document["points"])
    assert f"within {held_ms:.4g} ms on" in page.read_text()
    assert run(["frontier", *base, "--also", "nothing-of-that-name=0.5"]) != 0
    assert "nothing-of-that-name" in capsys.readouterr().err


def test_the_macs_that_pruning_by_macs_must_leave_are_those_of_a_network_that_meets_the_target(real):
    graph, cost = real
    rng = np.random.default_rng(0)
    scores = {g.name: rng.gamma(0.5, 1.0, g.size) for g in graph.groups if g.prunable}
    floor = diagnose(cost, scores, cost.dense_ms).floor_ms
    for share in (0.2, 0.5, 0.9):
        budget_ms = floor + share * (cost.dense_ms - floor)
        found = diagnose(cost, scores, budget_ms, graph.groups)
        meets = found.macs_to_meet
        assert meets is not None
        assert meets.latency_ms <= budget_ms
        assert meets.importance <= found.importance + 1e-3  # the latency-aware widths are the best within the target
        if found.same_macs.over > 0:
            assert meets.macs_m <= found.same_macs.macs_m
        assert any("To meet the target it must remove" in line for line in sentences("net", found))


def test_a_table_that_lacks_kernels_is_completed_in_a_copy_and_stays_as_it_was(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    table = tmp_path / "mine.jsonl"
    assert run(["profile", "--model", "resnet20", "--gpu", "titanv", "--out", str(table)]) == 0
    before = table.read_bytes()
    other = ["--model", "vgg11_bn", "--input-shape", "3,32,32", "--gpu", "titanv", "--table", str(table)]
    assert run(["doctor", *other, "--latency-target", "0.9"]) == 0
    assert table.read_bytes() == before
    copies = list((tmp_path / "cache").rglob("mine-with-*.jsonl"))
    assert len(copies) == 1
    assert copies[0].read_bytes().startswith(before[: before.index(b"\n")])
    assert run(["frontier", *other, "--points", "2"]) == 0
    assert table.read_bytes() == before
    assert list((tmp_path / "cache").rglob("mine-with-*.jsonl")) == copies
    # A run of prune or train reads its table here.
    device = DeviceChoice(name="titanv", table=str(table))
    job = Job("vgg11_bn", None, Recipe(), Target(0.9, "fraction"), "one-shot", device, input_shape=(3, 32, 32))
    network = stages.network(job)
    used = stages.table(job, network, Silent())
    assert used.path == copies[0]
    assert not missing_from(used.table, network.graph)
    assert table.read_bytes() == before
    capsys.readouterr()
    # One for another device is refused by its name, before anything is written.
    assert run(["frontier", *other[:-4], "--gpu", "a100", "--table", str(table)]) == 1
    said = capsys.readouterr().err
    assert str(table) in said
    assert "its device is" in said
    assert list((tmp_path / "cache").rglob("mine-with-*.jsonl")) == copies
