import itertools
import random
import time
from dataclasses import replace

import numpy as np
import pytest

from halp_profiler.errors import TableError
from halp_profiler.kernel import Kernel
from halp_profiler.spikes import standing_out
from halp_profiler.steps import Steps
from halp_profiler.surface import HELD_OUT, Surface
from halp_profiler.table import Point
from tests.profiler.fakes import CONV, DEPTHWISE, LINEAR, header, point, staircase_ms

RULES = [Steps(), Steps(1, 8, 8), Steps(4, 16, 16, 16), Steps(8, 1, 32), Steps(4, 16, 16)]


def random_surface(rng, kernel, steps, holes):
    lines_in = sorted(rng.sample(range(1, 129), rng.randint(1, 12)))
    lines_out = sorted(rng.sample(range(1, 129), rng.randint(1, 12)))
    pairs = [(c, c) for c in lines_in] if kernel.diagonal else list(itertools.product(lines_in, lines_out))
    if holes:
        pairs = [p for p in pairs if rng.random() < 0.6] or pairs[:1]
    points = [point(kernel, i, o, rng.uniform(0.1, 2)) for i, o in pairs]
    rng.shuffle(points)
    return points, Surface(kernel, points, steps)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("kernel", [CONV, DEPTHWISE, LINEAR])
def test_a_measured_point_is_returned_as_measured(kernel, holes):
    rng = random.Random(1)
    for steps in RULES * 12:
        points, surface = random_surface(rng, kernel, steps, holes)
        for p in points:
            assert float(surface(p.c_in, p.c_out)) == pytest.approx(p.median_ms, rel=1e-12)


@pytest.mark.parametrize("kernel", [CONV, DEPTHWISE, LINEAR])
def test_the_surface_stays_within_what_was_measured(kernel):
    rng = random.Random(2)
    for steps in RULES * 8:
        points, surface = random_surface(rng, kernel, steps, holes=False)
        a = np.arange(surface.lines_in[0], surface.lines_in[-1] + 1)
        b = a if kernel.diagonal else np.arange(surface.lines_out[0], surface.lines_out[-1] + 1)
        values = surface(a, b) if kernel.diagonal else surface(a[:, None], b[None, :])
        measured = [p.median_ms for p in points]
        assert values.min() >= min(measured) - 1e-12
        assert values.max() <= max(measured) + 1e-12


def test_a_whole_rectangle_equals_its_single_points_to_the_last_bit():
    rng = random.Random(3)
    for steps in [*RULES, Steps(align=4, align_out=8)] * 4:
        _, surface = random_surface(rng, CONV, steps, holes=True)
        a = np.arange(surface.lines_in[0], surface.lines_in[-1] + 1)[:, None]
        b = np.arange(surface.lines_out[0], surface.lines_out[-1] + 1)[None, :]
        pairs = surface(*(x.ravel() for x in np.broadcast_arrays(a, b))).reshape(a.size, b.size)
        np.testing.assert_array_equal(surface(a, b), pairs)
        some = rng.sample(range(a.size), min(3, a.size))
        np.testing.assert_array_equal(surface(a[some], b), pairs[some])
        assert float(surface(int(a[-1, 0]), int(b[0, 0]))) == pairs[-1, 0]


def test_the_last_bits_of_the_readings_do_not_decide_how_holes_are_filled():
    rng = random.Random(4)
    for steps in RULES * 8:
        points, surface = random_surface(rng, CONV, steps, holes=True)
        shaken = [replace(p, median_ms=p.median_ms * (1 + rng.uniform(-4e-16, 4e-16))) for p in points]
        np.testing.assert_allclose(Surface(CONV, shaken, steps).grid_ms, surface.grid_ms, rtol=1e-9)


def test_a_step_is_not_smeared_over_its_neighbours():
    steps = Steps(1, 16, 16)
    tops = [16, 32, 48, 64]
    points = [point(CONV, i, o, i * o / 4096) for i in [1, *tops] for o in [1, *tops]]
    surface = Surface(CONV, points, steps)
    for edge in tops[:-1]:
        assert float(surface(64, edge + 1)) == float(surface(64, edge + 16))  # all of the next step is level
        assert float(surface(64, edge)) == pytest.approx(edge / 64)  # and this one ends where it was measured
        assert float(surface(edge + 1, 64)) == float(surface(edge + 16, 64))


def test_where_both_edges_of_a_block_are_measured_it_is_linear_between_them():
    surface = Surface(LINEAR, [point(LINEAR, c, 4, ms) for c, ms in ((16, 1), (17, 5), (32, 8), (48, 9))], Steps(1, 16))
    assert [float(surface(c, 4)) for c in (16, 17, 20, 32, 33, 48)] == pytest.approx([1, 5, 5.6, 8, 9, 9])


def test_blocks_between_measured_ones_lie_between_their_tops():
    surface = Surface(LINEAR, [point(LINEAR, c, 4, ms) for c, ms in ((16, 1), (64, 7))], Steps(1, 16))
    assert [float(surface(c, 4)) for c in (17, 32, 33, 48, 49)] == pytest.approx([3, 3, 5, 5, 7])


def test_fewer_channels_may_be_slower():
    points = [point(CONV, i, 64, ms) for i, ms in ((48, 0.30), (63, 0.34), (64, 0.24), (49, 0.33))]
    surface = Surface(CONV, points, Steps(4, 16, 16, 16))
    assert float(surface(63, 64)) > float(surface(64, 64))
    assert float(surface(61, 64)) == pytest.approx(0.33 + 0.01 * 12 / 14)  # among its own kind
    assert float(surface(60, 64)) == float(surface(64, 64))  # and this among its own


def test_a_held_out_point_takes_no_part():
    points = [point(LINEAR, 1, 1, 1.0), point(LINEAR, 9, 1, 9.0), point(LINEAR, 5, 1, 100.0, HELD_OUT)]
    assert float(Surface(LINEAR, points, Steps())(5, 1)) == pytest.approx(5.0)


def test_a_width_outside_of_the_table_is_said():
    surface = Surface(LINEAR, [point(LINEAR, c, o, 1.0) for c in (4, 8) for o in (2, 10)], Steps())
    for c_in, c_out, name in ((3, 5, "3 channels in"), (9, 5, "9 channels in"), (5, 11, "11 channels out")):
        with pytest.raises(TableError, match=name):
            surface(np.array([5, c_in]), np.array([5, c_out]))
    with pytest.raises(TableError):
        Surface(LINEAR, [], Steps())


def test_holes_in_the_grid_are_filled_from_the_lines_around_them():
    steps = header().steps(CONV)
    lines = [1, 8, 15, 16, 32, 48, 64]
    full = [point(CONV, i, o, staircase_ms(CONV, i, o)) for i in lines for o in (1, 16, 32, 48, 64)]
    sparse = [p for p in full if p.c_in != 32 or p.c_out == 64]
    surface = Surface(CONV, sparse, steps)
    for o in (16, 32, 48):
        assert float(surface(32, o)) == pytest.approx(staircase_ms(CONV, 32, o), rel=0.05)


def test_whole_networks_are_looked_up_quickly():
    surface = random_surface(random.Random(5), CONV, Steps(4, 16, 16, 16), False)[1]
    low_in, high_in = surface.lines_in[[0, -1]]
    low_out, high_out = surface.lines_out[[0, -1]]
    a = np.linspace(low_in, high_in, 2048).astype(int)[:, None]
    b = np.linspace(low_out, high_out, 512).astype(int)[None, :]
    start = time.process_time()
    for _ in range(10):
        surface(a, b)
    assert (time.process_time() - start) / 10 < 0.05


def test_a_fast_path_that_asks_for_both_widths_is_not_smeared_over_the_others():
    kernel, steps = Kernel("conv", (8, 8), (3, 3), groups=2), Steps(align=16, block_in=16, block_out=16, align_out=16)

    def truth(c_in, c_out):
        return c_in * c_out * (0.5 if c_in % 16 == 0 == c_out % 16 else 1.0)

    rng = np.random.default_rng(0)
    into, out = [1, 15, 16, 17, 32, 48, 63, 64], [1, 16, 17, 31, 32, 64]
    points = [Point(kernel, a, b, t, t, t, 1) for a in into for b in out for t in (truth(a, b),)]
    surface = Surface(kernel, points, steps)
    a, b = rng.integers(1, 65, 400), rng.integers(1, 65, 400)
    a[:200], b[:200] = -(-a[:200] // 16) * 16, -(-b[:200] // 16) * 16
    expected = np.array([truth(*at) for at in zip(a.tolist(), b.tolist(), strict=True)])
    np.testing.assert_allclose(surface(a, b), expected, rtol=1e-9)
    np.testing.assert_allclose(surface(a[:50, None], b[None, :50]).diagonal(), expected[:50], rtol=1e-9)
    for p in points:
        assert float(surface(p.c_in, p.c_out)) == pytest.approx(p.median_ms)
        assert (p.c_in, p.c_out) in surface.corners(p.c_in, p.c_out)
    assert not standing_out(surface, 0.01)
    assert Steps.from_json(steps.to_json()) == steps
    only = Surface(kernel, [p for p in points if p.c_in % 16], steps)  # nothing on the fast path was measured
    assert float(only(32, 32)) == pytest.approx(1024)
