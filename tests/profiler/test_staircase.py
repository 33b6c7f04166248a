"""What is said of a staircase is true of it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halp_profiler import sweep
from halp_profiler import table as tables
from halp_profiler.errors import UsageError
from halp_profiler.kernel import KernelRange
from halp_profiler.staircase import staircase
from halp_profiler.steps import Steps
from halp_profiler.surface import Surface
from tests.profiler.fakes import CONV, DEPTHWISE, FakeBackend, point


def line_of(latencies):
    """A diagonal kernel that was measured at every width."""
    points = [point(DEPTHWISE, c, c, ms) for c, ms in enumerate(latencies, 1)]
    return staircase(Surface(DEPTHWISE, points, Steps()), points, "in")


def test_a_step_is_liked_below_and_a_trap_above():
    line = line_of([0.1 * -(-c // 16) for c in range(1, 65)])
    assert line.likes == (16, 32, 48, 64)
    assert [(t.low, t.high, t.better, t.reason) for t in line.traps] == [
        (17, 17, 16, "step"), (33, 33, 32, "step"), (49, 49, 48, "step"),
    ]  # fmt: skip
    assert line.traps[0].excess == pytest.approx(1.0)


def test_a_width_slower_than_a_larger_one_is_a_trap():
    """As measured with ONNX Runtime: 63 channels in are slower than 64, and 65 than 80."""
    latencies = [0.0037 * c for c in range(1, 63)] + [0.323, 0.240, 0.340] + [0.33] * 14 + [0.292]
    line = line_of(latencies)
    slower = [t for t in line.traps if t.reason == "slower"]
    assert (slower[0].high, slower[0].better) == (63, 64)
    assert (slower[-1].low, slower[-1].high, slower[-1].better) == (65, 79, 80)
    assert 64 in line.likes
    assert not set(line.likes) & {w for t in line.traps for w in range(t.low, t.high + 1)}


def test_a_line_without_steps_has_no_traps():
    line = line_of([0.01 + 0.002 * c for c in range(1, 200)])
    assert (line.likes, line.traps) == ((199,), ())


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=80))
def test_every_trap_is_one_and_every_like_is_none(latencies):
    line = line_of(latencies)
    at = dict(zip(line.widths.tolist(), line.ms.tolist(), strict=True))
    for trap in line.traps:
        if trap.reason == "slower":
            assert trap.better > trap.high
            assert all(at[w] > at[trap.better] for w in range(trap.low, trap.high + 1))
        else:
            assert trap.better == trap.low - 1
            assert at[trap.low] > 1.03 * at[trap.better]
    trapped = {w for t in line.traps for w in range(t.low, t.high + 1)}
    assert not trapped & set(line.likes)
    for width in at:
        if any(at[v] < 0.97 * at[width] for v in at if v > width):
            assert width in trapped
    assert np.isfinite(line.ms).all()


@pytest.fixture
def table_file(tmp_path):
    path = tmp_path / "t.jsonl"
    sweep.run(FakeBackend(), [KernelRange(CONV, (1, 64), (1, 64)), KernelRange(DEPTHWISE, (1, 64), (1, 64))], path)
    return path


def test_both_axes_of_a_convolution_can_be_seen(table_file):
    table = tables.read(table_file)
    points = [p for p in table.points if p.kernel == CONV]
    surface = Surface(CONV, points, table.header.steps(CONV))
    out, into = staircase(surface, points, "out"), staircase(surface, points, "in", 32)
    assert (out.other, into.other) == (64, 32)
    assert set(out.likes) >= {16, 32, 48, 64}
    assert any(t.low <= 63 <= t.high and t.better == 64 for t in into.traps)
    for wrong in (0, 65):
        with pytest.raises(UsageError):
            staircase(surface, points, "out", wrong)
    single = [p for p in table.points if p.kernel == DEPTHWISE]
    with pytest.raises(UsageError, match="follow from the input"):
        staircase(Surface(DEPTHWISE, single, Steps()), single, "out")


def called(*args):
    from click.testing import CliRunner

    from halp_iee.cli.tables import command

    return CliRunner().invoke(command, list(args), catch_exceptions=False)


def test_the_terminal_shows_steps_likes_and_traps(table_file):
    out = called("show", str(table_file), "1").output
    assert re.search(r"^ +17 .*#+ +trap: a step more than 16", out, re.M)
    assert re.search(r"^Likes: .*\b16, 32, 48, 64", out, re.M)
    assert re.search(r"^Traps: 17 \(.*more than 16\)", out, re.M)
    document = json.loads(called("show", str(table_file), "1", "--axis", "in", "--json").output)
    assert document["other"] == 64
    assert {"low", "high", "better", "excess", "reason"} == set(document["traps"][0])


def test_the_page_stands_alone(table_file, tmp_path):
    page = tmp_path / "stairs.html"
    assert "2 kernels" in called("show", str(table_file), "--html", str(page)).output
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "Likes" in text
    assert "Traps" in text
    assert not re.search(r"""(src|href)\s*=|url\(|@import|https?://""", text)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert len(text) < 400_000


def test_a_page_of_a_modelled_device_says_so(tmp_path):
    page = tmp_path / "stairs.html"
    called("show", "titanv-modelled-b1-fp32-resnet50", "1", "--html", str(page))
    assert "Modelled, not measured" in page.read_text()


def test_nothing_is_left_where_a_page_cannot_be_written(table_file, tmp_path):
    from halp_iee.errors import ArtifactError

    with pytest.raises(ArtifactError):
        called("show", str(table_file), "--html", str(tmp_path / "no" / "stairs.html"))
