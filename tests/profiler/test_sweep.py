import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from halp_profiler import sweep
from halp_profiler import table as tables
from halp_profiler.backends.base import Request
from halp_profiler.errors import DeviceError, TableError, UsageError
from halp_profiler.kernel import Kernel, KernelRange
from halp_profiler.surface import Surface
from tests.profiler.fakes import CONV, DEPTHWISE, LINEAR, FakeBackend, Lottery, staircase_ms

RANGES = [
    KernelRange(CONV, (1, 200), (1, 150)),
    KernelRange(DEPTHWISE, (1, 200), (1, 200)),
    KernelRange(LINEAR, (1, 64), (10, 10)),
    KernelRange(Kernel("conv", (8, 8), (3, 3), plain=True), (3, 3), (1, 64)),
    KernelRange(Kernel("conv", (8, 8), (3, 3), group_width=8, group_out=16), (8, 256), (16, 512)),
]


def surfaces(path):
    table = tables.read(path)
    kernels = {p.kernel for p in table.points}
    return {k: Surface(k, [p for p in table.points if p.kernel == k], table.header.steps(k)) for k in kernels}


def test_an_adaptive_sweep_finds_the_staircase_from_few_points(tmp_path):
    backend = FakeBackend()
    result = sweep.run(backend, RANGES[:2], tmp_path / "t.jsonl", max_error=0.02)
    assert result.complete
    assert result.held_out_error < 0.02
    assert result.measured < 0.05 * 200 * 150
    found, rng = surfaces(tmp_path / "t.jsonl"), random.Random(0)
    errors = []
    for _ in range(300):
        c_in, c_out = rng.randint(1, 200), rng.randint(1, 150)
        errors.append(float(found[CONV](c_in, c_out)) / staircase_ms(CONV, c_in, c_out) - 1)
    assert np.median(np.abs(errors)) < 0.01
    assert np.quantile(np.abs(errors), 0.95) < 0.06


@pytest.mark.parametrize("seed", range(4))
def test_stray_readings_are_not_believed(tmp_path, seed):
    """One reading in ten is half again as slow, or a third quicker: few are left, and they cost no lines of points."""
    calm = sweep.run(FakeBackend(), RANGES[:2], tmp_path / "calm.jsonl")
    lottery = Lottery(seed=seed)
    result = sweep.run(lottery, RANGES[:2], tmp_path / "t.jsonl")
    assert result.measured < 2 * calm.measured
    assert result.held_out_error < 0.02
    points = [p for p in tables.read(tmp_path / "t.jsonl").points if "held_out" not in p.flags]
    stray = sum(p.median_ms != pytest.approx(staircase_ms(*p.key), rel=0.01) for p in points)
    assert stray < 0.05 * len(points)  # of a tenth; what is left lies between its neighbours


def test_what_is_slower_every_time_stays(tmp_path):
    class Trap(FakeBackend):
        def measure(self, requests):
            return [
                replace(p, **({"median_ms": 2 * p.median_ms} if p.c_in == 64 else {}))
                for p in super().measure(requests)
            ]

    sweep.run(Trap(), RANGES[:1], tmp_path / "t.jsonl")
    found = surfaces(tmp_path / "t.jsonl")[CONV]
    assert float(found(64, 150)) == pytest.approx(2 * staircase_ms(CONV, 64, 150))
    assert float(found(80, 150)) == pytest.approx(staircase_ms(CONV, 80, 150), rel=0.02)


def test_the_table_covers_every_width_of_its_ranges(tmp_path):
    for high in (1, 2, 3, 5, 15, 16, 17, 31, 64, 100):
        path = tmp_path / f"{high}.jsonl"
        sweep.run(
            FakeBackend(),
            [KernelRange(CONV, (1, high), (1, high)), KernelRange(DEPTHWISE, (1, high), (1, high))],
            path,
        )
        widths = np.arange(1, high + 1)
        for kernel, surface in surfaces(path).items():
            got = surface(widths, widths) if kernel.diagonal else surface(widths[:, None], widths[None, :])
            assert np.isfinite(got).all()


def test_grouped_kernels_are_only_asked_for_whole_groups(tmp_path):
    backend = FakeBackend()
    sweep.run(backend, RANGES, tmp_path / "t.jsonl")
    for request in backend.asked:
        assert request.c_in % request.kernel.quantum == 0
        if request.kernel.diagonal:
            assert request.c_out == request.kernel.c_out_of(request.c_in)


def test_a_fixed_axis_is_measured_at_its_width_only(tmp_path):
    backend = FakeBackend()
    sweep.run(backend, [RANGES[2]], tmp_path / "t.jsonl")
    assert {r.c_out for r in backend.asked} == {10}


def test_exhaustive_measures_every_width_once(tmp_path):
    backend = FakeBackend()
    sweep.run(backend, [KernelRange(CONV, (1, 6), (2, 5))], tmp_path / "t.jsonl", mode="exhaustive")
    assert sorted((r.c_in, r.c_out) for r in backend.asked) == [(i, o) for i in range(1, 7) for o in range(2, 6)]


def test_a_finished_sweep_is_not_measured_again(tmp_path):
    path = tmp_path / "t.jsonl"
    first = sweep.run(FakeBackend(), RANGES, path)
    before, again = path.read_bytes(), FakeBackend()
    second = sweep.run(again, RANGES, path)
    assert not again.asked
    assert path.read_bytes() == before
    assert second.held_out_error == pytest.approx(first.held_out_error, abs=1e-5)


def test_a_further_network_only_adds_what_is_missing(tmp_path):
    path = tmp_path / "t.jsonl"
    sweep.run(FakeBackend(), RANGES[:2], path)
    known, backend = tables.read(path).keys(), FakeBackend()
    sweep.run(backend, RANGES[1:], path)
    assert backend.asked
    assert not any((r.kernel, r.c_in, r.c_out) in known for r in backend.asked)


def test_a_sweep_that_was_stopped_goes_on_where_it_stopped(tmp_path):
    class Stopped(FakeBackend):
        def measure(self, requests):
            if len(self.asked) > 60:
                raise KeyboardInterrupt
            return super().measure(requests)

    path, first, second = tmp_path / "t.jsonl", Stopped(), FakeBackend()
    with pytest.raises(KeyboardInterrupt):
        sweep.run(first, RANGES, path)
    sweep.run(second, RANGES, path)
    whole = FakeBackend()
    sweep.run(whole, RANGES, tmp_path / "whole.jsonl")
    done = [(r.kernel, r.c_in, r.c_out) for r in first.asked]
    again = {(r.kernel, r.c_in, r.c_out) for r in second.asked} & set(done)
    assert len(again) < 0.2 * len(done)  # those that stand out
    assert {p.key for p in tables.read(path).points} == {p.key for p in tables.read(tmp_path / "whole.jsonl").points}


def test_kill_9_at_any_moment_leaves_a_table_that_can_be_gone_on_with(tmp_path):
    path = tmp_path / "t.jsonl"
    script = textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from halp_profiler import sweep
        from tests.profiler.fakes import FakeBackend
        from tests.profiler.test_sweep import RANGES
        class Slow(FakeBackend):
            def measure(self, requests):
                time.sleep(0.003)
                return super().measure(requests)
        sweep.run(Slow(), RANGES, {str(path)!r})
    """)
    for _ in range(3):
        size = path.stat().st_size if path.exists() else 0
        process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
        while process.poll() is None and (not path.exists() or path.stat().st_size < size + 3000):
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert tables.read(path).points
    known, backend = tables.read(path).keys(), FakeBackend()
    sweep.run(backend, RANGES, path)
    again = {(r.kernel, r.c_in, r.c_out) for r in backend.asked} & set(known)
    assert len(again) < 0.2 * len(known)  # those that stand out


def test_the_time_budget_ends_the_refinement_but_the_table_is_usable(tmp_path):
    class Slow(FakeBackend):
        def measure(self, requests):
            time.sleep(0.01)
            return super().measure(requests)

    start = time.monotonic()
    result = sweep.run(Slow(), RANGES, tmp_path / "t.jsonl", time_budget_s=0.5)
    assert time.monotonic() - start < 1.5
    assert not result.complete
    for kernel, surface in surfaces(tmp_path / "t.jsonl").items():
        r = next(r for r in RANGES if r.kernel == kernel)
        assert np.isfinite(surface(r.c_in[1], r.c_out[1]))


def test_a_kernel_that_cannot_be_timed_is_named(tmp_path):
    result = sweep.run(FakeBackend(refused=(CONV,)), RANGES[:2], tmp_path / "t.jsonl")
    assert result.refused == {CONV.key: "the fake does not want it"}


def test_a_kernel_that_the_device_fails_on_does_not_end_the_sweep(tmp_path):
    class Broken(FakeBackend):
        def measure(self, requests):
            if any(r.kernel == CONV for r in requests):
                raise DeviceError("It cannot run", "not implemented", "Leave it out")
            return super().measure(requests)

    result = sweep.run(Broken(), RANGES, tmp_path / "t.jsonl")
    assert result.refused == {CONV.key: "not implemented"}
    assert result.complete
    with pytest.raises(DeviceError):
        sweep.run(Broken(), RANGES[:1], tmp_path / "u.jsonl")


def test_a_disturbed_point_is_found_and_measured_again(tmp_path):
    class Disturbed(FakeBackend):
        def measure(self, requests):
            before = [(r.c_in, r.c_out) for r in self.asked]
            new = super().measure(requests)
            return [
                replace(p, median_ms=9 * p.median_ms) if p.key[1:] == (64, 64) and (64, 64) not in before else p
                for p in new
            ]

    path = tmp_path / "t.jsonl"
    small = [KernelRange(CONV, (1, 64), (1, 64))]
    results = [sweep.run(Disturbed(), small, path.with_suffix(f".{s}"), seed=s) for s in range(8)]
    repaired = [
        any(p.c_in == 64 and p.c_out == 64 and p.median_ms < 0.1 for p in tables.read(r.path).points) for r in results
    ]
    assert any(repaired)  # whenever a held-out point happened to rest on it


def test_progress_reaches_its_total(tmp_path):
    seen = []
    sweep.run(FakeBackend(), RANGES, tmp_path / "t.jsonl", progress=lambda *a: seen.append(a))
    assert seen[-1][0] == seen[-1][1]
    assert [a[0] for a in seen] == sorted(a[0] for a in seen)
    assert all(eta >= 0 for _, _, eta in seen)


@pytest.mark.parametrize("changes", [{"mode": "fast"}, {"max_error": 0}, {"max_error": 2}, {"time_budget_s": -1}])
def test_an_impossible_setting_is_a_usage_error_and_makes_no_file(tmp_path, changes):
    with pytest.raises(UsageError):
        sweep.run(FakeBackend(), RANGES, tmp_path / "t.jsonl", **changes)
    assert not (tmp_path / "t.jsonl").exists()


def test_a_broken_table_is_left_alone(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("something else\n")
    with pytest.raises(TableError):
        sweep.run(FakeBackend(), RANGES, path)
    assert path.read_text() == "something else\n"


def test_requests_are_plain_numbers():
    assert Request(CONV, 1, 2) == Request(CONV, np.int64(1), 2)
