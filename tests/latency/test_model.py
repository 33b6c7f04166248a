import random

import numpy as np
import pytest

from halp_iee.graph.records import ChannelGroup
from halp_iee.latency import LatencyModel, LatencyTable
from halp_iee.latency.layers import sweep_plan
from halp_iee.solve import solve
from halp_profiler import sweep
from halp_profiler import table as tables
from halp_profiler.errors import TableError, UsageError
from tests.latency.networks import residual_network
from tests.profiler.fakes import FakeBackend, header


@pytest.fixture(scope="module")
def network():
    return residual_network(3, channels=48)


@pytest.fixture(scope="module")
def table(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "t.jsonl"
    sweep.run(FakeBackend(), sweep_plan(network), path)
    return LatencyTable.load(path)


@pytest.fixture(scope="module")
def model(network, table):
    return LatencyModel(network, table)


def some_widths(network, n, seed=0):
    rng = random.Random(seed)
    return [{g.name: rng.randint(1, g.size) for g in network.groups} for _ in range(n)]


def test_a_prediction_is_the_sum_of_its_layers(network, model):
    fitted = model.calibrate([(w, 1.3 * model.predict(w) + 0.05) for w in some_widths(network, 4)])
    for m in (model, fitted):
        for widths in some_widths(network, 30, seed=1):
            parts = [float(c.ms(c.c_in(widths), c.c_out(widths))) for c in m.layers]
            assert m.predict(widths) == pytest.approx(m.fixed_ms + sum(parts), rel=1e-12)


def test_dense_is_the_prediction_with_every_group_whole(network, model):
    assert model.dense_ms == model.predict({}) == model.predict({g.name: g.size for g in network.groups})
    lines = model.describe()
    assert sum(line.dense_ms for line in lines) == pytest.approx(model.dense_ms)
    assert sum(line.share for line in lines) == pytest.approx(1)


def test_layer_costs_broadcast_as_the_solver_asks(model):
    for cost in model.layers:
        a, b = np.arange(1, cost.c_in.full + 1)[:, None], np.arange(1, cost.c_out.full + 1)[None, :]
        if cost.surface.lines_in[0] > 1:
            a = a[-1:]
        if not cost.kernel.diagonal and cost.surface.lines_out[0] > 1:
            b = b[:, -1:]
        assert cost.ms(a, b).shape == (a.size, b.size)


def test_calibration_recovers_a_known_scale_and_offset(network, model):
    rng = random.Random(0)
    for _ in range(20):
        scale, offset = rng.uniform(0.6, 1.8), rng.choice([0, rng.uniform(0, 0.3)])
        points = [(w, scale * model.predict(w) + offset) for w in some_widths(network, 5, rng.random())]
        fitted = model.calibrate(points)
        assert fitted.calibration.scale == pytest.approx(scale, rel=1e-6)
        assert fitted.fixed_ms == pytest.approx(offset, abs=1e-6)
        assert fitted.calibration.worst < 1e-6
        assert model.calibration is None
        assert model.fixed_ms == 0


def test_one_point_fits_the_scale_alone(model):
    fitted = model.calibrate([({}, 2 * model.dense_ms)])
    assert (fitted.calibration.scale, fitted.fixed_ms) == (pytest.approx(2), 0)
    assert fitted.dense_ms == pytest.approx(2 * model.dense_ms)


def test_points_that_are_alike_fit_the_scale_alone(model):
    fitted = model.calibrate([({}, model.dense_ms), ({}, 1.02 * model.dense_ms), ({}, 1.01 * model.dense_ms)])
    assert fitted.fixed_ms == 0
    assert fitted.calibration.scale == pytest.approx(1.01, rel=1e-3)


def test_an_offset_takes_off_a_tenth_of_the_quickest_at_most(network, model):
    for less, at_most in ((0.02, 0.02), (10.0, np.inf)):
        points = [(w, max(0.01, model.predict(w) - less)) for w in some_widths(network, 6)]
        quickest = min(ms for _, ms in points)
        fitted = model.calibrate(points)
        assert -min(at_most, 0.1 * quickest) - 1e-9 <= fitted.fixed_ms
        assert fitted.calibration.scale > 0
        assert all(fitted.predict(w) > 0 for w, _ in points)


def test_one_disturbed_point_does_not_spoil_the_fit(network, model):
    points = [(w, 1.2 * model.predict(w) + 0.02) for w in some_widths(network, 8)]
    points[3] = (points[3][0], 3 * points[3][1])
    fitted = model.calibrate(points)
    for w in some_widths(network, 5, seed=9):
        assert fitted.predict(w) == pytest.approx(1.2 * model.predict(w) + 0.02, rel=0.02)
    assert fitted.calibration.worst > 0.5  # and it is reported


def test_calibrating_twice_does_not_build_on_the_first(network, model):
    points = [(w, 1.5 * model.predict(w)) for w in some_widths(network, 3)]
    assert model.calibrate(points).calibrate(points).dense_ms == pytest.approx(1.5 * model.dense_ms)


@pytest.mark.parametrize("points", [[], [({}, 0.0)], [({}, -1.0)], [({}, float("nan"))], [({}, float("inf"))]])
def test_an_impossible_measurement_is_refused(model, points):
    with pytest.raises(UsageError):
        model.calibrate(points)


def test_a_table_without_one_of_the_convolutions_is_refused(network, table, tmp_path):
    lost = next(k for k in table.kernels if k.op == "conv")
    rest = [p for k in table.kernels if k != lost for p in table.points(k)]
    poor = LatencyTable(tables.Table(header(), tuple(rest)))
    with pytest.raises(TableError, match="nearest kernel"):
        LatencyModel(network, poor)


def test_a_table_without_a_pool_leaves_it_to_calibration(network, table):
    rest = [p for k in table.kernels if k.op != "global_pool" for p in table.points(k)]
    model = LatencyModel(network, LatencyTable(tables.Table(header(), tuple(rest))))
    assert [k.op for k in model.missing] == ["global_pool"]


def test_a_wider_network_than_the_table_covers_is_refused_at_once(table):
    with pytest.raises(TableError, match="not known"):
        LatencyModel(residual_network(3, channels=64), table)


def test_a_group_that_costs_nothing_can_be_solved_for_and_stays_whole(network, table):
    class WithAnIdleGroup:
        ops = network.ops
        groups = (*network.groups, ChannelGroup("idle", 5, ("idle",), True, None))

    cost = LatencyModel(WithAnIdleGroup(), table)
    for asked in (cost, cost.calibrate([({}, 2 * cost.dense_ms)])):
        scores = {g.name: np.ones(g.size) for g in WithAnIdleGroup.groups if g.prunable}
        answer = solve(asked, scores, 0.8 * asked.dense_ms)
        assert answer.keep["idle"].tolist() == list(range(5))
        assert answer.latency_ms <= 0.8 * asked.dense_ms
