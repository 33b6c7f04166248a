"""Several devices: the work is divided, every device has one process, and the parts become one table."""

from __future__ import annotations

import multiprocessing

import pytest

from halp_profiler import fleet
from halp_profiler import table as tables
from halp_profiler.devices import Device, find
from halp_profiler.errors import DeviceError, TableError, UsageError
from halp_profiler.kernel import Kernel, KernelRange
from halp_profiler.watch import affinity
from tests.profiler.fakes import CONV, LINEAR, header, point

RANGES = [
    KernelRange(CONV, (1, 16), (1, 16)), KernelRange(LINEAR, (1, 16), (10, 10)),
    KernelRange(Kernel("conv", (8, 8), (1, 1)), (1, 16), (1, 16)),
]  # fmt: skip
CORES = sorted(affinity())
two_cores = pytest.mark.skipif(len(CORES) < 2, reason="this process may use one core only")


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_work_is_divided_whole_and_about_evenly(parts):
    ranges = [KernelRange(Kernel("conv", (s, s), (3, 3)), (1, c), (1, c)) for s in (8, 16, 32) for c in (16, 64, 128)]
    shares = fleet.divided(ranges, parts)
    assert sorted((r.kernel.key, r.c_in) for share in shares for r in share) == sorted(
        (r.kernel.key, r.c_in) for r in ranges
    )
    loads = [sum(fleet._work(r) for r in share) for share in shares]
    assert max(loads) <= sum(loads) / parts + max(fleet._work(r) for r in ranges)


@pytest.mark.parametrize(
    ("names", "error", "why"),
    [
        ([], UsageError, "none was named"), (["cpu"], UsageError, "all of it"),
        (["titanv"], DeviceError, "not attached"),
        ([f"cpu:{CORES[0]}"] * 2, UsageError, "named twice"),
    ],
)  # fmt: skip
def test_devices_that_cannot_share_the_work_are_refused_before_anything_is_measured(names, error, why, tmp_path):
    with pytest.raises(error, match=why):
        fleet.run(names, RANGES, tmp_path / "t.jsonl", settings={})
    assert list(tmp_path.iterdir()) == []


def test_gpus_of_two_kinds_are_not_mixed(monkeypatch):
    gpus = {n: Device(n, label, "cuda", True) for n, label in (("cuda:0", "A"), ("cuda:1", "B"))}
    monkeypatch.setattr(fleet, "find", gpus.__getitem__)
    with pytest.raises(UsageError, match="A and B"):
        fleet._distinct(["cuda:0", "cuda:1"])


def test_a_device_measures_for_one_process_only():
    device = find(f"cpu:{CORES[0]}")
    with fleet.claimed(device), pytest.raises(DeviceError, match="another process") as caught, fleet.claimed(device):
        pass
    assert caught.value.exit_code == 3
    with fleet.claimed(device):
        pass


@two_cores
def test_two_core_sets_measure_one_table_and_go_on_with_it(tmp_path):
    pytest.importorskip("torch")
    path, seen = tmp_path / "t.jsonl", []
    run = {"settings": {"backend": "torch"}, "max_error": 0.5, "time_budget_s": 20.0}
    devices = [f"cpu:{c}" for c in CORES[:2]]
    result = fleet.run(devices, RANGES, path, progress=lambda *state: seen.append(state), **run)
    table = tables.read(path)
    assert {p.kernel for p in table.points} == {r.kernel for r in RANGES}
    assert result.measured >= len(table.points) > 0
    assert [p.name for p in tmp_path.iterdir()] == ["t.jsonl"]
    assert seen[-1][0] <= seen[-1][1]
    again = fleet.run(devices, RANGES, path, **run)
    assert again.resumed == len(table.points)
    assert tables.read(path).keys() >= table.keys()
    assert multiprocessing.active_children() == []


@two_cores
def test_what_fails_in_a_process_comes_back_as_its_own_error(tmp_path):
    devices = [f"cpu:{c}" for c in CORES[:2]]
    with pytest.raises(DeviceError, match="runs on cuda only"):
        fleet.run(devices, RANGES, tmp_path / "t.jsonl", settings={"backend": "tensorrt"})
    foreign = tmp_path / "foreign.jsonl"
    tables.create_or_check(foreign, header())
    tables.append(foreign, [point(CONV, 8, 8, 1.0)])
    before = foreign.read_bytes()
    with pytest.raises(TableError, match="another device"):
        fleet.run(devices, RANGES, foreign, settings={"backend": "torch"})
    assert foreign.read_bytes() == before
    assert multiprocessing.active_children() == []


def test_ray_divides_the_work_among_tasks(tmp_path):
    ray = pytest.importorskip("ray")
    pytest.importorskip("torch")
    from halp_profiler import fleet_ray

    path = tmp_path / "t.jsonl"
    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        run = {"device": "cpu", "settings": {"backend": "torch"}, "max_error": 0.5, "time_budget_s": 20.0}
        result = fleet_ray.run(RANGES, path, workers=2, **run)
        table = tables.read(path)
        assert {p.kernel for p in table.points} == {r.kernel for r in RANGES}
        assert result.measured >= len(table.points) > 0
        with pytest.raises(DeviceError, match="too small"):
            fleet_ray.run(RANGES, path, workers=64, **run)
        with pytest.raises(DeviceError, match="runs on cuda only"):
            fleet_ray.run(RANGES, path, workers=2, **{**run, "settings": {"backend": "tensorrt"}})
        assert tables.read(path).keys() == table.keys()
    finally:
        ray.shutdown()


def test_without_ray_the_package_is_named(monkeypatch, tmp_path):
    import sys

    from halp_profiler import fleet_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DeviceError, match="pip install ray"):
        fleet_ray.run(RANGES, tmp_path / "t.jsonl", workers=2, settings={})
