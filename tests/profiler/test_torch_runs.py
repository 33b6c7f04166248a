"""torch's kernels compute what the ONNX ones compute, and are timed as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from halp_profiler.backends.base import Request, Settings
from halp_profiler.backends.cuda_clock import CudaClock
from halp_profiler.devices import find
from halp_profiler.errors import DeviceError, UsageError
from halp_profiler.geometry import output_spatial
from halp_profiler.kernel import ACTIVATIONS, SPATIAL_OPS, Kernel

torch = pytest.importorskip("torch")

from halp_profiler.backends import torch_kernels  # noqa: E402
from halp_profiler.backends.torch_runs import TorchRuns  # noqa: E402

SQUARE, WINDOW = (8, 8), {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1)}
KERNELS = [
    *(Kernel("conv", SQUARE, **WINDOW, fused=f) for f in ((), ("relu",), ("add",), ("add", "relu"), ("silu", "add"))),
    *(Kernel("conv", SQUARE, (1, 1), fused=(name,)) for name in ACTIVATIONS),
    Kernel("conv", SQUARE, **WINDOW, group_width=1, group_out=1, fused=("relu",)),
    Kernel("conv", SQUARE, **WINDOW, group_width=1, group_out=2),
    Kernel("conv", SQUARE, **WINDOW, group_width=4, group_out=4),
    Kernel("conv", SQUARE, **WINDOW, groups=3, fused=("add", "relu")), Kernel("conv", (16,), (3,), groups=2),
    Kernel("conv_transpose", SQUARE, (4, 4), (2, 2), (1, 1), groups=3),
    Kernel("conv", SQUARE, (3, 3), (1, 1), (2, 2), dilation=(2, 2)),
    Kernel("conv", (16,), (3,), (1,), (1,)),
    Kernel("conv", (4, 8, 8), (3, 3, 3), (1, 1, 1), (1, 1, 1), fused=("relu",)),
    Kernel("conv_transpose", SQUARE, (4, 4), (2, 2), (1, 1)),
    Kernel("conv_transpose", SQUARE, (3, 3), (2, 2), (1, 1), output_padding=(1, 1)),
    Kernel("linear"), Kernel("linear", (5,), fused=("gelu",)), Kernel("linear", (5,), fused=("add",)),
    Kernel("matmul", (4, 5)), Kernel("max_pool", SQUARE, **WINDOW), Kernel("avg_pool", SQUARE, **WINDOW),
    Kernel("global_pool", SQUARE), Kernel("add", SQUARE, fused=("relu",)), Kernel("mul", SQUARE),
    *(Kernel("activation", SQUARE, fused=(name,)) for name in ACTIVATIONS),
    Kernel("batch_norm", SQUARE, fused=("relu",)), Kernel("layer_norm", (5,)), Kernel("softmax", (5,)),
    Kernel("cat", SQUARE), Kernel("interpolate", SQUARE, (16, 16)), Kernel("attention", (3, 5), (7,)),
    Kernel("group_norm", SQUARE, group_width=4, group_out=4), Kernel("copy", SQUARE), Kernel("transpose", SQUARE),
]  # fmt: skip


def channels_of(kernel, c_in=12):
    return c_in, kernel.c_out_of(c_in) if kernel.diagonal else 20


def on_cpu(values):
    return torch.from_numpy(np.array(values, order="C"))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.key)
@pytest.mark.parametrize("c_in", [12, 16])
def test_torch_and_onnx_compute_the_same(kernel, c_in):
    onnxruntime = pytest.importorskip("onnxruntime")
    from halp_profiler.backends import onnx_kernels as onnx_side

    c_in, c_out = channels_of(kernel, c_in)
    d = onnx_side.Drawing()
    built = torch_kernels.build(kernel, c_in, c_out, 2, place=on_cpu)
    names = [d.input(f"x{i}", x.shape) for i, x in enumerate(built.inputs)]
    own = len(names) - (0 if kernel.op == "activation" else kernel.fused.count("add"))
    y = onnx_side.operation(d, kernel, names[:own], c_in, c_out, 2)
    d.output(onnx_side.fuse(d, kernel, y, names[own:]))
    arrays = [np.asarray(onnx_to_array(w)) for w in d.weights]
    if kernel.op == "group_norm":  # the exporter's form of it has further constants before its weights
        arrays = [w.reshape(-1) for w in arrays if w.shape == (c_in, 1, 1)]
    given = iter(arrays)

    def weights(shape):
        values = next(given)
        if kernel.op == "batch_norm":
            values = values - np.float32(0.1)  # both sides make them positive in the same way
        return values if values.shape == tuple(shape) else values.T

    built = torch_kernels.build(kernel, c_in, c_out, 2, place=on_cpu, weights=weights)
    session = onnxruntime.InferenceSession(d.model().SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {n: x.numpy() for n, x in zip(names, built.inputs, strict=True)})[0]
    with torch.inference_mode():
        np.testing.assert_allclose(built().numpy(), expected, rtol=2e-4, atol=2e-5)


def onnx_to_array(weight):
    from onnx import numpy_helper

    return numpy_helper.to_array(weight)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.key)
def test_a_kernel_can_run_again_and_again_on_what_it_was_given(kernel):
    c_in, c_out = channels_of(kernel)
    built = torch_kernels.build(kernel, c_in, c_out, 1, place=on_cpu)
    before = [x.clone() for x in built.inputs]
    with torch.inference_mode():
        first, second = built(), built()
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(before, built.inputs, strict=True))
    if kernel.op in SPATIAL_OPS - {"copy", "transpose"}:
        assert tuple(first.shape) == (1, kernel.of_tensor(c_out), *output_spatial(kernel))


def test_what_is_not_known_is_refused_by_name():
    assert "to_plain" in torch_kernels.refusal(Kernel("to_plain", SQUARE))
    assert "dimensions" in torch_kernels.refusal(Kernel("conv", SQUARE, (3,)))
    assert torch_kernels.refusal(KERNELS[0]) is None


@pytest.mark.parametrize("layout", [None, "nhwc"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_really_measures_on_the_cpu(layout, precision):
    backend = TorchRuns(find("cpu"), Settings(layout=layout, precision=precision), min_rounds=2, min_seconds=0)
    conv = Kernel("conv", (14, 14), (3, 3), (1, 1), (1, 1), fused=("add", "relu"))
    small, large, row = backend.measure(
        [Request(conv, 16, 16), Request(conv, 128, 128), Request(Kernel("linear"), 8, 8)]
    )
    assert 0 < small.median_ms < large.median_ms < 1000
    assert 0 < row.median_ms < large.median_ms
    header = backend.header()
    assert (header.backend, header.source, header.layout) == ("torch", "measured", layout or "nchw")
    assert header.device["threads"] == 1
    assert header.how["state"]["affinity"]


def test_process_wide_switches_are_put_back():
    before = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    backend = TorchRuns(find("cpu"), Settings(threads=2), min_rounds=1, min_seconds=0)
    backend.measure([Request(Kernel("linear"), 8, 8)])
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark) == before
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_several_compiled_runs_have_tensors_of_their_own():
    """Runs that shared tensors would be computed once, and n runs would take as long as one."""
    backend = TorchRuns.__new__(TorchRuns)
    backend._torch, backend.settings, backend.layout, backend._where, backend._gpu = (
        torch,
        Settings(),
        "nchw",
        "cpu",
        False,
    )
    seen = []

    class Compiler:
        float32 = torch.float32

        @staticmethod
        def compile(function, **options):
            def run(inputs, weights):
                seen.append([t.data_ptr() for part in (*inputs, *weights) for t in part])
                return function(inputs, weights)

            return run

    backend._torch = Compiler
    prepared = backend._compiled(Request(KERNELS[1], 12, 20))
    prepared.many()
    assert prepared.runs == 3
    assert len(seen[-1]) == len(set(seen[-1])) == 9


def test_only_a_gpu_has_graphs_and_tf32():
    with pytest.raises(UsageError, match="GPU"):
        TorchRuns(find("cpu"), Settings(), "cudagraph")
    with pytest.raises(UsageError, match="tf32"):
        TorchRuns(find("cpu"), Settings(precision="tf32"))


def test_a_kernel_that_torch_cannot_run_is_one_clear_error():
    backend = TorchRuns(find("cpu"), Settings(), min_rounds=1, min_seconds=0)
    with pytest.raises(DeviceError, match="cannot run conv"):
        backend.measure([Request(Kernel("conv", (2, 2), (5, 5), (1, 1), (0, 0)), 4, 4)])


class Events:
    """A GPU whose calls take as long as they say, and longer where the cache is cold."""

    def __init__(self):
        self.order, self.warm = [], set()

    def call(self, name, ms):
        def run():
            self.order.append(name)
            self.last_ms = ms * (1 if name in self.warm else 3)
            self.warm.add(name)

        return run

    def flush(self):
        self.order.append("flush")
        self.warm.clear()

    def between_ms(self, call):
        call()
        return self.last_ms


def timed(clock, calls, rounds=6):
    return clock(calls, min_rounds=rounds, min_seconds=0, warmup=1, unstable_over=0.1)


def test_the_cuda_clock_times_warm_or_cold_and_takes_turns():
    gpu = Events()
    calls = {"a": gpu.call("a", 1.0), "b": gpu.call("b", 2.0)}
    warm = timed(CudaClock(gpu), calls)
    assert (warm["a"].median_ms, warm["b"].median_ms, warm["a"].samples) == (1.0, 2.0, 6)
    gpu.order.clear()
    cold = timed(CudaClock(gpu, gpu.flush), calls)
    assert (cold["a"].median_ms, cold["b"].median_ms) == (3.0, 6.0)
    samples = gpu.order[2:]
    assert samples[::2] == ["flush"] * 12
    assert samples[1:9:2] == ["a", "b", "b", "a"]


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["eager", "cudagraph", "compiled"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_it_really_measures_on_a_gpu(mode, precision, layout):
    backend = TorchRuns(find("cuda:0"), Settings(batch=8, precision=precision, layout=layout), mode)
    conv = Kernel("conv", (28, 28), (3, 3), (1, 1), (1, 1), fused=("add", "relu"))
    small, large = backend.measure([Request(conv, 64, 64), Request(conv, 1024, 1024)])
    assert 0 < small.median_ms < large.median_ms
    # 2 x MACs over the time is under any GPU's peak of 3 PFLOP/s.
    flops = 2 * 8 * 28 * 28 * 9 * 1024 * 1024
    assert flops / (large.median_ms / 1e3) < 3e15
    assert not math.isnan(small.p25_ms)


@pytest.mark.gpu
def test_a_cold_cache_is_slower_than_a_warm_one_on_a_gpu():
    add = Request(Kernel("add", (56, 56)), 64, 64)
    warm, cold = (
        TorchRuns(find("cuda:0"), Settings(batch=4, l2=l2), "cudagraph").measure([add])[0].median_ms
        for l2 in ("warm", "cold")
    )
    assert cold > warm


@pytest.mark.gpu
def test_graphs_leave_out_what_launching_costs():
    relu = Request(Kernel("activation", (4, 4), fused=("relu",)), 8, 8)
    eager, graph = (
        TorchRuns(find("cuda:0"), Settings(), mode).measure([relu])[0].median_ms for mode in ("eager", "cudagraph")
    )
    assert graph < eager
