"""What a run says it cost: seconds over all its calls, FLOPs stage by stage, what was timed once and kept."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from halp_iee.errors import UsageError
from halp_iee.measure.training_cost import iee_flops_per_sample
from halp_iee.methods.config import HALPConfig, IEEConfig
from halp_iee.methods.halp import HALP
from halp_iee.methods.iee import IEE
from halp_iee.progress import Silent
from halp_iee.run.directory import RunDirectory
from halp_iee.run.job import Job
from halp_iee.run.searches import configuration, default_descent, default_stages, training_bill
from halp_iee.run.stopwatch import Stopwatch
from halp_iee.train import Recipe


def test_seconds_of_a_run_are_those_of_all_its_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run = RunDirectory(tmp_path)
    for _ in range(3):  # killed after seven seconds each, the last of which was not written down
        watch = Stopwatch(run, Silent())
        with watch.task("work") as task:
            for _ in range(6):
                now[0] += 1.0
                task.update(1)
        now[0] += 1.0
    assert 3 * 3 <= Stopwatch(run, Silent()).seconds <= 3 * 7
    run.seconds.write_text(json.dumps({"wall": 12.0}))
    watch = Stopwatch(run, Silent())
    now[0] += 5
    assert watch.seconds == 17.0
    watch.tick()
    assert json.loads(run.seconds.read_text()) == {"wall": 17.0}


def macs_of(widths: Any) -> int:
    return int(sum(widths.values()))


def method(kind: type, config: Any) -> Any:
    made = object.__new__(kind)
    made.config = config
    return made


@pytest.mark.parametrize("seed", range(5))
def test_the_bill_of_iee_is_the_sum_over_steps_at_the_size_of_each(seed: int) -> None:
    rng = random.Random(seed)
    config = IEEConfig(H=rng.randint(1, 9), J=rng.randint(0, 9), Q=rng.randint(0, 9), T=rng.randint(1, 5))
    steps, batch, dense = config.steps + rng.randint(0, 50), 7, 1000
    widths = {"a": 300}
    events: list[dict[str, Any]] = [{"event": "start", "step": 0, "widths": widths}, {"event": "epoch", "step": 0}]
    expected, at = 0.0, 0
    for _ in range(config.T):
        size = widths["a"]
        expected += config.H * 3 * size
        at += config.H
        widths = {"a": rng.randint(200, 300)}
        events.append({"event": "prune", "step": at, "widths": widths})
        expected += config.J * 3 * widths["a"] + config.Q * (2 * widths["a"] + dense)
        at += config.J + config.Q
        widths = {"a": rng.randint(300, 400)}
        events.append({"event": "grow", "step": at, "widths": widths})
    events.append({"event": "settle", "step": at, "widths": widths})
    expected += (steps - at) * 3 * widths["a"]
    bill = training_bill(method(IEE, config), dense, events, steps, batch, macs_of)
    assert bill.flops == pytest.approx(2 * batch * expected)
    assert sum(one.steps for one in bill.per_stage.values()) == steps


def test_at_a_constant_size_the_bill_is_the_papers_formula() -> None:
    config = IEEConfig(H=5, J=5, Q=5, T=4)
    events: list[dict[str, Any]] = [{"event": "start", "step": 0, "widths": {"a": 300}}]
    for t in range(config.T):
        events += [{"event": "prune", "step": 15 * t + 5, "widths": {"a": 300}},
                   {"event": "grow", "step": 15 * t + 15, "widths": {"a": 300}}]  # fmt: skip
    bill = training_bill(method(IEE, config), 1000, events, 200, 8, macs_of)
    formula = iee_flops_per_sample(300, 1000, update_share=config.steps / 200, stages=(5, 5, 5))
    assert bill.ratio() == pytest.approx(formula / 3000)


def test_the_bill_of_halp_is_paid_at_the_size_before_each_pruning_step() -> None:
    config = HALPConfig(steps=2, interval=10)
    events = [
        {"event": "prune", "step": 10, "widths": {"a": 600}},
        {"event": "prune", "step": 20, "widths": {"a": 300}},
    ]
    bill = training_bill(method(HALP, config), 1000, events, 50, 4, macs_of)
    assert bill.flops == 2 * 4 * 3 * (10 * 1000 + 10 * 600 + 30 * 300)


@pytest.mark.parametrize("steps", [1, 5, 9, 30, 100, 1000, 160_000])
def test_the_default_lengths_fit_into_any_training_that_they_are_for(steps: int) -> None:
    descent = default_descent(steps)
    assert descent.period <= max(1, 0.2 * steps) + 1
    assert default_stages(steps).steps <= max(7, steps / 3)
    assert default_stages(steps, trained=True).steps <= max(7, steps / 5)


def test_a_network_that_comes_trained_exchanges_less_and_sooner_unless_told_otherwise() -> None:
    job = Job(model="resnet20", data="digits", recipe=Recipe())
    fresh, trained = configuration(job, 1000), configuration(replace(job, weights="there"), 1000)
    assert (fresh.omega_start, trained.omega_start) == (0.3, 0.1)
    assert trained.steps <= 200 < fresh.steps <= 333
    asked = configuration(replace(job, weights="there", switches={"omega_start": 0.2, "T": 8}), 1000)
    assert (asked.omega_start, asked.T) == (0.2, 8)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"switches": {"H": 100, "T": 3}}, r"3 \(100 \+ 5 \+ 1\)"),
        ({"method": "halp", "switches": {"interval": 300}}, "x interval"),
        ({"method": "halp", "switches": {"grow": "random"}}, "halp has no setting 'grow'"),
        ({"switches": {"interval": 3}}, "iee has no setting 'interval'"),
        ({"switches": {"omega_end": 0.5, "omega_start": 0.2}}, "omega"),
        ({"criterion": "charm"}, "charm"),
        ({"switches": {"start": "sideways"}}, "start='sideways'"),
    ],
)
def test_settings_that_do_not_fit_the_run_are_refused(changes: dict[str, Any], word: str) -> None:
    job = Job(model="resnet20", data="digits", recipe=Recipe(), **changes)
    with pytest.raises(UsageError, match=word):
        configuration(job, 250)


@pytest.mark.parametrize(
    "switches",
    [{"grow": "random"}, {"reactivate": "zero"}, {"freeze": False}, {"J": 0}, {"H": 2, "J": 1, "Q": 1, "T": 3}],
)
def test_every_ablation_of_table_4_reaches_the_method(switches: dict[str, Any]) -> None:
    job = Job(model="resnet20", data="digits", recipe=Recipe(), switches=switches, seed=3, criterion="fisher")
    config = configuration(job, 300)
    assert {name: getattr(config, name) for name in switches} == switches
    assert (config.seed, config.criterion) == (3, "fisher")


def test_whole_networks_that_were_timed_are_not_timed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after any of them, the run times only the others, and ends with the same figures."""
    import torch

    from halp_iee.graph import trace
    from halp_iee.run import stages
    from halp_iee.run.target import Target
    from tests.methods.conftest import FakeCost, Tiny

    graph = trace(Tiny(), torch.randn(1, 2, 8, 8))
    cost = FakeCost(graph)
    network: Any = SimpleNamespace(graph=graph)
    job = Job(model="x", data=None, recipe=Recipe(), target=Target(0.4, "fraction"))
    timed: list[float] = []

    class KilledError(Exception):
        pass

    class Clock:
        def __init__(self, patience: int) -> None:
            self.patience, self._dense = patience, 0.0

        def scale_to(self, ms: float) -> None:
            self._dense = ms

        @property
        def dense_ms(self) -> float:
            return self._dense or self({})

        def __call__(self, keep: dict[str, np.ndarray]) -> float:
            if self.patience == 0:
                raise KilledError
            self.patience -= 1
            ms = cost.predict({n: len(u) for n, u in keep.items()})
            timed.append(ms)
            self._dense = self._dense or ms
            return ms

    run = RunDirectory(tmp_path)
    for _ in range(stages.CALIBRATION_NETWORKS):
        with pytest.raises(KilledError):
            stages._time_whole_networks(job, network, cost, Clock(1), run, Silent())  # type: ignore[arg-type]
    points = stages._time_whole_networks(job, network, cost, Clock(1), run, Silent())  # type: ignore[arg-type]
    assert len(timed) == len(points) == stages.CALIBRATION_NETWORKS + 1
    assert [ms for _, ms in points] == timed
    assert stages._time_whole_networks(job, network, cost, Clock(0), run, Silent()) == points  # type: ignore[arg-type]
