import itertools
import json

import pytest

from halp_profiler.errors import TableError
from halp_profiler.kernel import OPS, Kernel, KernelRange


def some_kernels():
    shapes = [(), (14,), (14, 14), (4, 8, 8)]
    for op, spatial, fused in itertools.product(OPS, shapes, [(), ("relu",), ("add", "relu")]):
        yield Kernel(op, spatial, (3,) * len(spatial), (2,) * len(spatial), (1,) * len(spatial), fused=fused)
        yield Kernel(op, spatial, fused=fused, group_width=2, group_out=4, plain=True)
        if op.startswith("conv"):
            yield from (Kernel(op, spatial, (3,) * len(spatial), fused=fused, groups=groups) for groups in (2, 3))


def test_every_kernel_survives_json():
    for kernel in some_kernels():
        assert Kernel.from_json(json.loads(json.dumps(kernel.to_json()))) == kernel


def test_different_kernels_have_different_keys():
    kernels = set(some_kernels())
    assert len({k.key for k in kernels}) == len(kernels)


def test_a_grouped_kernel_says_how_wide_its_output_is():
    kernel = Kernel("conv", (8, 8), (3, 3), group_width=4, group_out=8)
    assert kernel.diagonal
    assert [kernel.c_out_of(c) for c in (4, 8, 64)] == [8, 16, 128]


def test_a_kernel_with_a_fixed_number_of_groups_has_two_axes_and_counts_one_groups_channels():
    kernel = Kernel("conv", (8, 8), (3, 3), groups=4)
    assert not kernel.diagonal
    assert (kernel.quantum, kernel.of_tensor(6)) == (1, 24)
    assert (kernel.key, kernel.family) == ("conv @8x8 k3x3 G4", "groups")


@pytest.mark.parametrize(
    "data",
    [
        {}, {"op": "launch"}, {"op": 3}, {"op": "conv", "spatial": "8x8"}, {"op": "conv", "spatial": [1.5]},
        {"op": "conv", "spatial": [-1]}, {"op": "conv", "spatial": [1] * 4}, {"op": "conv", "spatial": [1] * 100},
        {"op": "conv", "fused": ["eval"]}, {"op": "conv", "fused": [["relu"]]}, {"op": "conv", "group_width": 0},
        {"op": "conv", "group_width": True, "group_out": 1}, {"op": "conv", "plain": "yes"},
        {"op": "conv", "groups": 1}, {"op": "conv", "groups": True}, {"op": "conv", "groups": "2"},
        {"op": "conv", "groups": 1 << 20}, {"op": "linear", "groups": 2}, {"op": "conv", "groups": 2.0},
        {"op": "conv", "groups": 2, "group_width": 4, "group_out": 4},
        {"op": "conv", "group_width": 4}, {"op": "conv", "stride": [10**9]}, {"op": ["conv"]},
    ],
)  # fmt: skip
def test_an_impossible_kernel_is_refused(data):
    with pytest.raises(TableError):
        Kernel.from_json(data)


@pytest.mark.parametrize("axis", [[0, 4], [4, 2], [1], "ab", [1, 2, 3], [1, None], [True, 2]])
def test_an_impossible_range_is_refused(axis):
    with pytest.raises(TableError):
        KernelRange.from_json({"kernel": {"op": "linear"}, "c_in": axis, "c_out": [1, 1]})
