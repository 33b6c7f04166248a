"""Backends are found by name, and say at once what they lack."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from halp_profiler import nvml, plan
from halp_profiler.__main__ import main
from halp_profiler.backends import backend_for
from halp_profiler.backends import catalogue as catalogue_module
from halp_profiler.backends.base import Settings
from halp_profiler.backends.catalogue import CATALOGUE, choose, missing
from halp_profiler.devices import Device, find, names_of
from halp_profiler.errors import DeviceError, UsageError
from halp_profiler.kernel import Kernel, KernelRange
from halp_profiler.watch import affinity
from tests.profiler.fakes import CONV, LINEAR

GPU = Device("cuda:0", "NVIDIA H200", "cuda", True, details=(("uuid", "GPU-1"),))


@pytest.mark.parametrize(
    "wrong",
    [{"threads": 0}, {"batch": 0}, {"batch": 1 << 20}, {"precision": "int8"}, {"layout": "chw"}, {"l2": "hot"}],
)
def test_an_impossible_setting_is_refused(wrong):
    with pytest.raises(UsageError):
        Settings(**wrong)


def test_an_unknown_backend_names_the_known_ones():
    with pytest.raises(UsageError, match="onnxruntime-cpu"):
        backend_for(find("cpu"), backend="onnx")


@pytest.mark.parametrize("name", CATALOGUE)
def test_each_says_in_one_line_which_package_is_not_installed(name, monkeypatch):
    monkeypatch.setattr(catalogue_module, "find_spec", lambda module: None)
    entry = CATALOGUE[name]
    device = find("cpu") if "cpu" in entry.kinds else GPU
    with pytest.raises(DeviceError, match="pip install") as caught:
        choose(device, name)
    first = next(iter(entry.modules.values()))
    assert first in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_the_default_is_the_first_that_is_installed(monkeypatch):
    monkeypatch.setattr(catalogue_module, "find_spec", lambda module: module == "torch" or None)
    assert choose(find("cpu"), None).name == "torch"
    assert choose(GPU, None).name == "torch-cudagraph"
    monkeypatch.setattr(catalogue_module, "find_spec", lambda module: None)
    with pytest.raises(DeviceError, match="openvino: the package openvino is not installed"):
        choose(find("cpu"), None)


def test_a_backend_of_another_kind_of_device_says_so():
    with pytest.raises(DeviceError, match="runs on cuda only"):
        choose(find("cpu"), "tensorrt")
    with pytest.raises(DeviceError, match="not attached"):
        backend_for(find("titanv"), backend="torch")
    assert missing(CATALOGUE["openvino"], GPU) == "it runs on cpu only"


def test_the_cpu_wheel_of_onnx_runtime_is_not_taken_for_the_gpu_one(monkeypatch):
    monkeypatch.setattr(catalogue_module, "find_spec", lambda module: True)
    monkeypatch.setattr(catalogue_module, "_installed", lambda package: False)
    with pytest.raises(DeviceError, match="pip uninstall -y onnxruntime && pip install onnxruntime-gpu"):
        choose(GPU, "onnxruntime-cuda")


def test_a_precision_that_the_backend_lacks_is_refused_before_anything_is_loaded():
    with pytest.raises(UsageError, match="onnxruntime-cpu does not run in bf16"):
        backend_for(find("cpu"), backend="onnxruntime-cpu", precision="bf16")


def test_a_gpu_by_number_says_why_there_is_none(monkeypatch):
    monkeypatch.setattr(nvml, "missing", lambda: "the NVIDIA driver does not answer")
    monkeypatch.setattr(nvml, "attached", list)
    with pytest.raises(DeviceError, match="driver does not answer") as caught:
        find("cuda:3")
    assert caught.value.exit_code == 3


def test_cores_are_named_as_taskset_names_them():
    core = min(affinity())
    device = find(f"cpu:{core}")
    assert (device.cores, device.kind, device.label) == ((core,), "cpu", find("cpu").label)
    assert names_of("cpu:0,cpu:1") == ["cpu:0", "cpu:1"]
    assert names_of("cpu:0-3,8; cpu:4-7,9") == ["cpu:0-3,8", "cpu:4-7,9"]
    assert names_of("cuda:0, cuda:1,") == ["cuda:0", "cuda:1"]
    for wrong in ("cpu:", "cpu:x", "cpu:3-1", "cpu:-1", "cpu:0;"):
        with pytest.raises(UsageError):
            find(wrong)
    with pytest.raises(DeviceError, match="not there"):
        find("cpu:9999")


@pytest.mark.parametrize(
    ("backend", "needs", "blocked"),
    [
        ("onnxruntime-cpu", ("onnxruntime", "onnx"), ("torch", "torchvision", "openvino")),
        ("torch", ("torch",), ("onnxruntime", "onnx", "openvino", "torchvision")),
        ("openvino", ("openvino",), ("onnxruntime", "onnx", "torch", "torchvision")),
    ],
)
def test_one_runtime_alone_is_enough(backend, needs, blocked, tmp_path):
    """The profiler measures on a machine that has one runtime, and nothing else of what the library needs."""
    for module in needs:
        pytest.importorskip(module)
    kernels = (KernelRange(LINEAR, (1, 8), (10, 10)), KernelRange(Kernel("conv", (6, 6), (3, 3)), (1, 8), (8, 8)))
    plan.write(plan.Plan(kernels, time_budget_s=1.0, max_error=0.5), tmp_path / "sweep.json")
    never = (*blocked, "halp_iee", "ortools", "scipy", "sklearn", "pandas", "click", "rich", "pydantic", "safetensors")
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {never!r}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda n, *a: None if n in {never!r} else real(n, *a)\n"
        "from halp_profiler.__main__ import main\n"
        f"sys.exit(main(['run', {str(tmp_path / 'sweep.json')!r}, '--out', {str(tmp_path / 't.jsonl')!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    header = json.loads((tmp_path / "t.jsonl").read_text().splitlines()[0])
    assert (header["backend"], header["source"]) == (backend, "measured")


def test_the_profilers_command_line_says_what_is_missing_and_ends_with_3(tmp_path, capsys):
    plan.write(plan.Plan((KernelRange(CONV, (1, 8), (1, 8)),)), tmp_path / "s.json")
    run = ["run", str(tmp_path / "s.json"), "--out", str(tmp_path / "t.jsonl")]
    assert main([*run, "--backend", "tensorrt"]) == 3
    assert main([*run, "--backend", "nothing"]) == 2
    assert main([*run, "--device", "titanv", "--precision", "bf16"]) == 2
    assert main([*run, "--devices", "cpu"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 4
    assert not (tmp_path / "t.jsonl").exists()
    assert main(["devices"]) == 0
    out = capsys.readouterr().out
    assert "onnxruntime-cpu" in out
    assert "titanv" in out


def test_a_plan_carries_how_its_kernels_are_to_run(tmp_path):
    sent = plan.Plan((KernelRange(CONV, (1, 8), (1, 8)),), backend="torch", precision="bf16", layout="nhwc", l2="cold")
    plan.write(sent, tmp_path / "sweep.json")
    assert plan.read(tmp_path / "sweep.json") == sent
