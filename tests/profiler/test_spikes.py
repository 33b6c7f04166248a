import numpy as np
import pytest

from halp_profiler.spikes import standing_out
from halp_profiler.steps import Steps
from halp_profiler.surface import Surface
from tests.profiler.fakes import CONV, DEPTHWISE, point


def grid(change=None, widths=range(1, 9)):
    ms = {(i, o): 1.0 + 0.1 * i + 0.1 * o for i in widths for o in widths}
    ms.update(change or {})
    return Surface(CONV, [point(CONV, i, o, v) for (i, o), v in ms.items()], Steps())


def test_a_rising_surface_has_no_spike():
    assert standing_out(grid(), 0.0) == []


@pytest.mark.parametrize("factor", [1.6, 0.5])
@pytest.mark.parametrize("at", [(4, 4), (1, 5), (5, 8), (2, 2)])
def test_one_stray_reading_is_found_with_what_it_is_off_by(at, factor):
    true_ms = 1.0 + 0.1 * sum(at)
    found = {(i, o): ms for i, o, ms in standing_out(grid({at: true_ms * factor}), 0.02)}
    assert found[at] == pytest.approx(abs(factor - 1) * true_ms, abs=0.15 + 0.04 * true_ms * factor)


def test_a_stray_corner_is_found_where_it_is_out_of_order():
    assert (1, 1) in {(i, o) for i, o, _ in standing_out(grid({(1, 1): 3.0}), 0.02)}
    assert (8, 8) in {(i, o) for i, o, _ in standing_out(grid({(8, 8): 1.0}), 0.02)}


def test_widths_of_another_kind_are_no_neighbours():
    """Aligned widths are three times as quick; among the others they are no spikes."""
    kind = Steps(align=4)
    ms = {c: (1.0 if c % 4 == 0 else 3.0) + 0.1 * c for c in range(1, 33)}
    smooth = Surface(DEPTHWISE, [point(DEPTHWISE, c, c, v) for c, v in ms.items()], kind)
    assert standing_out(smooth, 0.0) == []
    ms[16] *= 1.5
    spiky = Surface(DEPTHWISE, [point(DEPTHWISE, c, c, v) for c, v in ms.items()], kind)
    found = standing_out(spiky, 0.0)
    assert max(found, key=lambda f: f[2])[:2] == (16, 16)
    assert {i for i, *_ in found} <= {12, 16, 20}  # the next ones of its kind lie beyond their neighbours then


def test_what_is_within_the_tolerance_does_not_stand_out():
    rng = np.random.default_rng(0)
    ms = {(i, o): (1.0 + 0.1 * i + 0.1 * o) * rng.uniform(0.99, 1.01) for i in range(1, 9) for o in range(1, 9)}
    assert standing_out(grid(ms), 0.02) == []
    ms[4, 4] *= 1.2
    assert max(standing_out(grid(ms), 0.02), key=lambda f: f[2])[:2] == (4, 4)


def test_only_what_was_measured_is_named():
    surface = grid()
    points = [point(CONV, i, o, 1.0 + 0.1 * i + 0.1 * o) for i in range(1, 9) for o in range(1, 9) if (i, o) != (4, 4)]
    holed = Surface(CONV, [*points[:-1], point(CONV, 8, 8, 0.5)], Steps())
    assert {(i, o) for i, o, _ in standing_out(holed, 0.05)} <= {(p.c_in, p.c_out) for p in points}
    assert surface.measured.all()
