"""The runtime's report on its nodes: whatever it fuses and however it names that, no kernel is lost."""

import numpy as np
import onnx
import pytest

from halp_profiler.backends import onnx_scenes
from halp_profiler.backends.base import Request
from halp_profiler.backends.ort_report import NodeReport
from halp_profiler.backends.ort_session import OrtSessions
from halp_profiler.errors import DeviceError
from halp_profiler.kernel import ACTIVATIONS, Kernel

BEHIND = [(), *((a,) for a in ACTIVATIONS), ("add",), ("add", "relu")]
KERNELS = {
    "linear": Kernel("linear"),
    "rows": Kernel("linear", (7,)),
    "1x1": Kernel("conv", (8, 8), (1, 1), (1, 1), (0, 0)),
    "depthwise": Kernel("conv", (8, 8), (3, 3), (1, 1), (1, 1), group_width=1, group_out=1),
    "1-D": Kernel("conv", (32,), (3,), (1,), (1,)),
    "transposed": Kernel("conv_transpose", (8, 8), (2, 2), (2, 2), (0, 0)),
}


@pytest.fixture(scope="module")
def sessions():
    return OrtSessions()


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("channels", [48, 51])
def test_whatever_is_fused_behind_it_a_kernel_is_in_the_report(kernel, channels, sessions):
    from dataclasses import replace

    requests = [Request(replace(kernel, fused=fused), channels, channels) for fused in BEHIND]
    model = onnx_scenes.build(requests, 1)
    found = NodeReport(sessions).run(model, requests, min_rounds=5, min_seconds=0.0)
    assert found.shape == (5, len(requests))
    assert np.all(np.median(found, axis=0) > 0)


def test_a_kernel_that_the_report_does_not_name_is_no_kernel_of_zero_cost(sessions):
    requests = [Request(KERNELS["1x1"], 16, 16), Request(KERNELS["linear"], 8, 8)]
    model = onnx_scenes.build(requests, 1)
    for node in model.graph.node:
        node.name = node.name.replace("k1_", "lost_")
    with pytest.raises(DeviceError, match=r"linear.*does not name it"):
        NodeReport(sessions).run(model, requests, min_rounds=2, min_seconds=0.0)


def test_a_huge_weight_is_in_no_model_and_runs_all_the_same(sessions):
    small, huge = Request(KERNELS["linear"], 64, 64), Request(KERNELS["linear"], 4096, 2048)
    model = onnx_scenes.build([small, huge], 1)
    apart = [w for w in model.graph.initializer if w.data_location == onnx.TensorProto.EXTERNAL]
    assert [tuple(w.dims) for w in apart] == [(2048, 4096)]
    assert model.ByteSize() < 1 << 20
    found = np.median(NodeReport(sessions).run(model, [small, huge], min_rounds=5, min_seconds=0.0), axis=0)
    assert found[1] > 5 * found[0] > 0


@pytest.mark.parametrize("requests", [[], [Request(KERNELS["linear"], 64, 64)]])
def test_what_runs_beside_the_scenes_makes_up_for_what_they_do_not_touch(requests):
    for touched in (1 << 20, 3 << 20, 20 << 20):
        model = onnx_scenes.build(requests, 1, touched=touched)
        weights = sum(4 * int(np.prod(w.dims)) for w in model.graph.initializer)
        assert touched - 16384 < weights <= touched
