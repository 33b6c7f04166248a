"""The profiler runs on a machine that has nothing of the library but itself."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from halp_profiler import plan, sweep
from halp_profiler import table as tables
from halp_profiler.__main__ import main
from halp_profiler.errors import TableError
from halp_profiler.kernel import Kernel, KernelRange
from tests.profiler.fakes import CONV, LINEAR

MODULES = [
    "kernel", "timing", "steps", "surface", "table", "sweep", "plan", "devices", "datasheet", "geometry", "errors",
    "__main__", "backends", "backends.base", "backends.ort_cpu", "backends.modelled",
]  # fmt: skip


def test_importing_it_brings_in_numpy_and_nothing_else():
    code = (
        "import sys, importlib\n"
        f"for m in {MODULES!r}: importlib.import_module('halp_profiler.' + m)\n"
        "heavy = {'halp_iee', 'torch', 'torchvision', 'ortools', 'onnx', 'onnxruntime', 'pandas', 'scipy', 'pynvml'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_measuring_never_brings_in_the_library(tmp_path):
    pytest.importorskip("onnxruntime")
    plan.write(plan.Plan((KernelRange(LINEAR, (1, 8), (10, 10)),)), tmp_path / "sweep.json")
    code = (
        "import sys\nfrom halp_profiler.__main__ import main\n"
        f"code = main(['run', {str(tmp_path / 'sweep.json')!r}, '--out', {str(tmp_path / 't.jsonl')!r}])\n"
        "print(code, sorted({'halp_iee', 'torch', 'torchvision', 'ortools'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "0 []"
    assert tables.read(tmp_path / "t.jsonl").header.source == "measured"


def test_a_plan_travels_by_file(tmp_path):
    sent = plan.Plan((KernelRange(CONV, (1, 64), (3, 3)), KernelRange(LINEAR, (1, 4), (1, 2))), batch=4, threads=2)
    plan.write(sent, tmp_path / "sweep.json")
    assert plan.read(tmp_path / "sweep.json") == sent


@pytest.mark.parametrize(
    "text",
    [
        "", "hello", "[]", "{}", '{"record":"sweep","schema":2}', '{"record":"sweep","schema":1,"ranges":[]}',
        '{"record":"sweep","schema":1,"ranges":[1]}', '{"record":"sweep","schema":1,"ranges":[{}]}',
        '{"record":"sweep","schema":1,"ranges":[{"kernel":{"op":"linear"},"c_in":[1,2],"c_out":[1,2]}],"batch":0}',
        '{"record":"sweep","schema":1,"ranges":[{"kernel":{"op":"linear"},"c_in":[1,2],"c_out":[1,2]}],"threads":"x"}',
        "[" * 100_000,
    ],
)  # fmt: skip
def test_a_broken_plan_is_one_line_and_exit_1(tmp_path, capsys, text):
    path = tmp_path / "sweep.json"
    path.write_text(text)
    with pytest.raises(TableError):
        plan.read(path)
    assert main(["run", str(path), "--out", str(tmp_path / "t.jsonl")]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "t.jsonl").exists()


def test_a_modelled_sweep_runs_and_merges_from_the_command_line(tmp_path, capsys):
    sweep_file, a, out = (str(tmp_path / n) for n in ("sweep.json", "a.jsonl", "out.jsonl"))
    plan.write(plan.Plan((KernelRange(CONV, (1, 64), (1, 64)),), device="TITAN V"), sweep_file)
    assert main(["run", sweep_file, "--out", a]) == 0
    assert "modelled" in capsys.readouterr().err
    assert main(["merge", a, a, "--out", out]) == 0
    assert tables.read(out).keys() == tables.read(a).keys()
    assert json.loads(Path(a).read_text().splitlines()[0])["source"] == "modelled"
    assert main(["run", sweep_file, "--out", a, "--device", "titan x"]) == 2
    assert main(["run", sweep_file, "--out", a, "--device", "a100"]) == 1
    assert "another device" in capsys.readouterr().err
    assert main(["devices"]) == 0


def test_onnx_runtime_really_measures_two_kernels(tmp_path):
    pytest.importorskip("onnxruntime")
    from halp_profiler.backends.ort_cpu import OrtCpu

    conv = Kernel("conv", (8, 8), (3, 3), (1, 1), (1, 1), fused=("add", "relu"))
    path = tmp_path / "t.jsonl"
    result = sweep.run(OrtCpu(), [KernelRange(conv, (1, 32), (1, 32)), KernelRange(LINEAR, (1, 32), (10, 10))], path)
    table = tables.read(path)
    assert result.measured >= len(table.points)
    assert not result.refused
    by_width = {(p.c_in, p.c_out): p.median_ms for p in table.points if p.kernel == conv}
    assert by_width[(32, 32)] > by_width[(16, 16)] > 0
    assert all(p.median_ms < 1 for p in table.points)


def test_every_kind_of_kernel_can_be_built_and_timed():
    pytest.importorskip("onnxruntime")
    from halp_profiler.backends.base import Request
    from halp_profiler.backends.ort_cpu import OrtCpu

    backend = OrtCpu(min_rounds=1, min_seconds=0)
    square, window = (8, 8), {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1)}
    kernels = [
        *(Kernel("conv", square, **window, fused=f) for f in ((), ("relu",), ("add",), ("add", "relu"), ("silu",))),
        *(Kernel("conv", square, (1, 1), fused=(f,)) for f in ("relu6", "hardswish", "gelu", "mish", "sigmoid", "elu")),
        Kernel("conv", square, **window, group_width=1, group_out=1, fused=("relu",)),
        Kernel("conv", square, **window, group_width=1, group_out=2),
        Kernel("conv", square, **window, group_width=4, group_out=4),
        Kernel("conv", square, **window, groups=2, fused=("add", "relu")), Kernel("conv", square, (1, 1), groups=3),
        Kernel("conv", square, **window, dilation=(2, 2)),
        Kernel("conv", square, **window, plain=True),
        Kernel("conv", (16,), (3,), (1,), (1,)),
        Kernel("conv", (4, 8, 8), (3, 3, 3), (1, 1, 1), (1, 1, 1), fused=("relu",)),
        Kernel("conv_transpose", square, (4, 4), (2, 2), (1, 1)),
        Kernel("conv_transpose", square, (3, 3), (2, 2), (1, 1), output_padding=(1, 1)),
        Kernel("linear"), Kernel("linear", (5,), fused=("gelu",)), Kernel("matmul", (4, 5)),
        Kernel("max_pool", square, **window), Kernel("avg_pool", square, (2, 2), (2, 2)),
        Kernel("global_pool", square), Kernel("add", square, fused=("relu",)), Kernel("mul", square),
        Kernel("activation", square, fused=("hardswish",)), Kernel("batch_norm", square, fused=("relu",)),
        Kernel("layer_norm", (5,)), Kernel("softmax", (5,)), Kernel("cat", square),
        Kernel("interpolate", square, (16, 16)), Kernel("attention", (2, 5), (5,)), Kernel("copy", square),
        Kernel("group_norm", square, group_width=4, group_out=4), Kernel("transpose", square), Kernel("copy", (7,)),
        Kernel("to_plain", square), Kernel("max_pool", square, **window, plain=True), Kernel("cat", square, plain=True),
        Kernel("add", square, fused=("relu",), plain=True), Kernel("batch_norm", square, plain=True),
        Kernel("activation", square, fused=("silu",), plain=True),
    ]  # fmt: skip
    kernels = [k for k in kernels if not backend.refusal(k)]
    requests = [Request(k, c, k.c_out_of(c) if k.diagonal else 8) for k in kernels for c in (4, 20, 32)]
    requests.append(Request(Kernel("cat", square), 1, 1))
    for point in backend.measure(requests):
        assert 0 <= point.median_ms < 50, point
    diagonal = [replace(k, spatial=(4, 24, 24)[-len(k.spatial) :]) for k in kernels if k.diagonal and k.spatial]
    larger = [Request(k, 32, k.c_out_of(32)) for k in diagonal]
    if backend.block > 1:
        larger.append(Request(Kernel("to_blocked", (24, 24)), 32, 32))
    assert all(p.median_ms > 0 for p in backend.measure(larger))


def test_threads_and_batch_are_in_the_header():
    pytest.importorskip("onnxruntime")
    from halp_profiler.backends.ort_cpu import OrtCpu

    header = OrtCpu(threads=2, batch=4).header()
    assert (header.device["threads"], header.batch, header.source) == (2, 4, "measured")
    assert header.backend_version
    assert header.how["state"]["affinity"]
