"""OpenVINO's kernels compute what torch's compute, and are really timed."""

from __future__ import annotations

import numpy as np
import pytest

from halp_profiler.backends.base import Request, Settings
from halp_profiler.devices import find
from halp_profiler.errors import UsageError
from halp_profiler.kernel import Kernel
from tests.profiler.test_torch_runs import KERNELS, SQUARE, WINDOW, channels_of, on_cpu

openvino = pytest.importorskip("openvino")
torch = pytest.importorskip("torch")

from halp_profiler.backends import openvino_kernels, torch_kernels  # noqa: E402
from halp_profiler.backends.openvino_cpu import OpenVino  # noqa: E402


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.key)
def test_openvino_and_torch_compute_the_same(kernel):
    from openvino import opset13 as ops

    c_in, c_out = channels_of(kernel)
    built = torch_kernels.build(kernel, c_in, c_out, 2, place=on_cpu)
    given = built.inputs[:1] + built.inputs[2:] if kernel.op in ("matmul", "mul") else built.inputs
    given = given[:1] if kernel.op == "attention" else given
    inputs = [ops.parameter(list(x.shape), np.float32) for x in given]
    y = openvino_kernels.apply(kernel, c_in, c_out, inputs, torch_kernels.noise)
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    network = openvino.Core().compile_model(openvino.Model([ops.result(y)], inputs), "CPU", options)
    found = network([x.numpy() for x in given])[0]
    with torch.inference_mode():
        np.testing.assert_allclose(found, built().numpy(), rtol=2e-3, atol=2e-5)


def test_it_really_measures():
    backend = OpenVino(find("cpu"), Settings(), min_rounds=2, min_seconds=0)
    conv = Kernel("conv", (14, 14), (3, 3), (1, 1), (1, 1), fused=("add", "relu"))
    small, large = backend.measure([Request(conv, 16, 16), Request(conv, 256, 256)])
    assert 0 <= small.median_ms < large.median_ms < 1000
    others = [Kernel("linear"), Kernel("max_pool", SQUARE, **WINDOW), Kernel("cat", SQUARE), Kernel("matmul", (4, 5))]
    points = backend.measure([Request(k, 8, k.c_out_of(8) if k.diagonal else 8) for k in others])
    assert all(0 <= p.median_ms < 100 for p in points)
    header = backend.header()
    assert (header.backend, header.source) == ("openvino", "measured")
    assert header.backend_version.startswith("20")


def test_what_it_does_not_have_is_said():
    with pytest.raises(UsageError, match="layout"):
        OpenVino(find("cpu"), Settings(layout="nhwc"))
    with pytest.raises(UsageError, match="tf32"):
        OpenVino(find("cpu"), Settings(precision="tf32"))
