"""What disturbs a measurement is seen, and leads to another one or to a flag."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from halp_profiler import nvml
from halp_profiler.backends.base import Request
from halp_profiler.backends.rounds import Prepared, Rounds
from halp_profiler.nvml import GpuWatch
from halp_profiler.timing import Timing
from halp_profiler.watch import CpuWatch, affinity, core_seconds, ranges
from tests.profiler.fakes import CONV


class Machine:
    """Cores whose time is spent as told."""

    def __init__(self):
        self.spent, self.own, self.wall = 100.0, 5.0, 50.0

    def watch(self, threads=1, cores=(0, 1)):
        return CpuWatch(
            threads, cores=cores, spent_s=lambda c: self.spent, own_s=lambda: self.own, wall_s=lambda: self.wall
        )

    def passes(self, seconds, own, others):
        self.wall += seconds
        self.own += own
        self.spent += own + others


@pytest.mark.parametrize(
    ("threads", "others", "flags"),
    [(1, 0.0, ()), (1, 0.95, ()), (1, 1.5, ("busy",)), (2, 0.05, ()), (2, 0.5, ("busy",)), (4, 0.5, ("busy",))],
)
def test_others_are_busy_when_they_want_more_than_the_cores_left_to_them(threads, others, flags):
    machine = Machine()
    watch = machine.watch(threads)
    watch.start()
    machine.passes(2.0, own=2.0 * min(threads, 2), others=2.0 * others)
    assert watch.stop() == flags


def test_a_system_that_does_not_tell_is_not_called_busy():
    watch = CpuWatch(1, cores=(0,), spent_s=lambda cores: None)
    watch.start()
    assert watch.stop() == ()
    assert core_seconds((0,), stat=watch_nowhere()) is None


def watch_nowhere():
    from pathlib import Path

    return Path("/no/such/file")


@pytest.mark.skipif(core_seconds(affinity()) is None, reason="the system does not tell who used its cores")
def test_a_real_process_on_the_same_core_is_seen():
    core = min(affinity())
    code = f"import os\nos.sched_setaffinity(0, [{core}])\nprint(1, flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            watch = CpuWatch(1, cores=(core,))
            watch.start()
            import time

            time.sleep(0.5)
            assert watch.stop() == ("busy",)
        finally:
            other.kill()
    assert watch.facts()["affinity"] == str(core)


def test_ranges_read_as_taskset_reads_them():
    assert ranges({0, 1, 2, 5, 7, 8}) == "0-2,5,7-8"


class Clock:
    """A reference and a kernel that take what the test says, try after try."""

    def __init__(self, reference_ms, kernel_ms=(1.0,), spread=0.0):
        self.reference_ms, self.kernel_ms, self.spread, self.calls = list(reference_ms), list(kernel_ms), spread, 0

    def __call__(self, calls, *, min_rounds, min_seconds, warmup, unstable_over):
        def timing(ms, spread=0.0):
            return Timing(
                ms, ms * (1 - spread), ms * (1 + spread), ms, ms, min_rounds, 2 * spread, 2 * spread > unstable_over
            )

        if "reference" not in calls:
            return {label: timing(self.reference_ms[0]) for label in calls}
        self.calls += 1
        now = min(self.calls, len(self.reference_ms) - 1)
        kernel = self.kernel_ms[min(self.calls - 1, len(self.kernel_ms) - 1)]
        return {k: timing(self.reference_ms[now]) if k == "reference" else timing(kernel, self.spread) for k in calls}


class Seen:
    def __init__(self, *flags):
        self.flags = list(flags)

    def start(self): ...

    def stop(self):
        return self.flags.pop(0) if self.flags else ()

    def facts(self):
        return {"watched": True}


def measured(clock, watch, times=1):
    rounds = Rounds(lambda: None, watch=watch, clock=clock)
    prepared = Prepared(lambda: None, 1)
    return [rounds.points([Request(CONV, 8, 8)], [prepared])[0] for _ in range(times)]


def test_a_quiet_point_is_measured_once_and_bears_no_flag():
    clock = Clock([1.0, 1.0])
    (point,) = measured(clock, Seen())
    assert (point.flags, clock.calls) == ((), 1)


def test_what_was_throttled_is_measured_again_and_the_quiet_try_stands():
    clock = Clock([1.0, 1.0], kernel_ms=[3.0, 2.0])
    (point,) = measured(clock, Seen(("throttled",)))
    assert (point.median_ms, point.flags, clock.calls) == (2.0, (), 2)


def test_what_stays_disturbed_is_flagged_and_never_silently_kept():
    clock = Clock([1.0, 1.0])
    (point,) = measured(clock, Seen(*[("busy",)] * 9))
    assert (point.flags, clock.calls) == (("busy",), 3)
    slow = Clock([1.0, 1.5])
    (point,) = measured(slow, Seen())
    assert (point.flags, slow.calls) == (("disturbed",), 3)


def test_nobody_is_waited_for_without_end():
    clock = Clock([1.0, 1.0])
    points = measured(clock, Seen(*[("busy",)] * 99), times=10)
    assert all(p.flags == ("busy",) for p in points)
    assert clock.calls == 5 * 3 + 5


def test_an_unsteady_point_is_measured_with_more_rounds_and_flagged_if_it_stays_so():
    clock = Clock([1.0, 1.0], spread=0.2)
    (point,) = measured(clock, Seen())
    assert point.flags == ("unstable",)
    assert point.samples == 27


def test_one_run_is_the_difference_less_what_stands_beside_it():
    assert Prepared(lambda: None, 4, call_ms=0.4).share_ms(4.4, None) == pytest.approx(1.0)
    assert Prepared(lambda: None, 4, one=lambda: None, each_ms=0.25).share_ms(5.0, 2.0) == pytest.approx(0.75)
    assert Prepared(lambda: None, 4, each_ms=9.0).share_ms(4.0, None) == 0.0


class FakeError(Exception):
    value = 3  # not supported


class FakeNvml:
    """The driver's library with two GPUs, as far as it is used."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU, NVML_ERROR_NOT_FOUND = 1, 2, 0, 6
    NVML_PERF_POLICY_POWER, NVML_PERF_POLICY_THERMAL = 0, 1
    NVMLError = FakeError

    def __init__(self):
        self.reasons, self.violation, self.pids, self.utilization = 0, 0, set(), {}

    def nvmlInit(self): ...  # noqa: N802
    def nvmlShutdown(self): ...  # noqa: N802
    def nvmlDeviceGetCount(self):  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, i):  # noqa: N802
        return f"GPU-{i}aaa"

    nvmlDeviceGetHandleByUUID = nvmlDeviceGetUUID = lambda self, x: x  # noqa: N815

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return b"NVIDIA H200" if handle == "GPU-0aaa" else b"Tesla V100-SXM2-16GB"

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return b"570.1"

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return SimpleNamespace(total=141 << 30)

    def nvmlDeviceGetMaxClockInfo(self, handle, kind):  # noqa: N802
        return 1980 if kind == self.NVML_CLOCK_SM else 3201

    def nvmlDeviceGetClockInfo(self, handle, kind):  # noqa: N802
        return 1900

    def nvmlDeviceGetCudaComputeCapability(self, handle):  # noqa: N802
        return 9, 0

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):  # noqa: N802
        raise FakeError

    def nvmlDeviceGetTemperature(self, handle, sensor):  # noqa: N802
        return 41

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):  # noqa: N802
        return self.reasons

    def nvmlDeviceGetViolationStatus(self, handle, policy):  # noqa: N802
        return SimpleNamespace(violationTime=self.violation)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        return [SimpleNamespace(pid=p) for p in self.pids]

    def nvmlDeviceGetProcessUtilization(self, handle, since_us):  # noqa: N802
        if self.utilization is None:
            raise FakeError
        return [SimpleNamespace(pid=p, smUtil=u) for p, u in self.utilization.items()]


@pytest.fixture
def driver(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def test_gpus_are_named_with_driver_clocks_and_memory(driver):
    first, second = nvml.attached()
    assert (first.index, first.label, first.uuid) == (0, "NVIDIA H200", "GPU-0aaa")
    facts = dict(first.facts)
    assert (facts["driver"], facts["memory_mb"], facts["max_clock_mhz"], facts["capability"]) == (
        "570.1", 141 << 10, 1980, "9.0",
    )  # fmt: skip
    from halp_profiler.devices import find

    device = find("cuda:1")
    assert device.attached
    assert device.datasheet is not None
    assert device.datasheet.name == "v100"
    assert find("h200").name == "cuda:0"
    assert second.index == 1


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("1", ["GPU-1aaa"]),
        ("1,0", ["GPU-1aaa", "GPU-0aaa"]),
        ("GPU-1", ["GPU-1aaa"]),
        ("", []),
        ("0,7,1", ["GPU-0aaa"]),
        ("-1", []),
    ],
)
def test_the_numbers_are_cudas_when_some_gpus_are_hidden(driver, monkeypatch, visible, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpus = nvml.attached()
    assert [g.uuid for g in gpus] == found
    assert [g.index for g in gpus] == list(range(len(found)))


@pytest.mark.parametrize(
    ("reasons", "flags"),
    [(0, ()), (0x1, ()), (0x2, ()), (0x100, ()), (0x4, ("throttled",)), (0x8, ("throttled",)), (0x20, ("throttled",)),
     (0x40, ("throttled",)), (0x81, ("throttled",))],
)  # fmt: skip
def test_the_drivers_reasons_tell_whether_the_clock_was_held_down(driver, reasons, flags):
    watch = GpuWatch("GPU-0aaa")
    watch.start()
    driver.reasons = reasons
    assert watch.stop() == flags


def test_throttling_that_came_and_went_is_seen_by_the_drivers_count(driver):
    watch = GpuWatch("GPU-0aaa")
    watch.start()
    driver.violation += 1000
    assert watch.stop() == ("throttled",)
    watch.start()
    assert watch.stop() == ()


def test_another_process_counts_when_it_computes(driver):
    driver.pids = {4711}
    watch = GpuWatch("GPU-0aaa")
    driver.pids |= {os.getpid()}
    watch.own()
    watch.start()
    driver.utilization = {os.getpid(): 99}
    assert watch.stop() == ()
    driver.utilization[4711] = 30
    assert watch.stop() == ("busy",)
    driver.utilization = None  # a driver that does not tell: being there is enough
    assert watch.stop() == ("busy",)


def test_in_a_container_the_process_that_appears_with_the_context_is_this_one(driver):
    driver.pids = {1}
    watch = GpuWatch("GPU-0aaa")
    driver.pids = {1, 99999}
    watch.own()
    driver.utilization = {99999: 80}
    watch.start()
    assert watch.stop() == ()
    driver.utilization = {1: 80}
    assert watch.stop() == ("busy",)


def test_the_header_says_clocks_and_temperature_and_passes_over_what_the_driver_lacks(driver):
    facts = GpuWatch("GPU-0aaa").facts()
    assert (facts["clock_mhz"], facts["temperature_c"], facts["gpu_watched"]) == (1900, 41, True)
    assert "power_limit_mw" not in facts


def test_without_the_library_nothing_is_watched_and_that_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.attached() == []
    assert "nvidia-ml-py" in nvml.missing()
    watch = GpuWatch("GPU-0aaa")
    watch.start()
    assert watch.stop() == ()
    assert watch.facts() == {"gpu_watched": False}
