"""What is said of the runtime's layouts, held against what the runtime does."""

import numpy as np
import pytest

from halp_iee.graph.records import Width
from halp_iee.latency import LatencyTable
from halp_iee.latency.layers import sweep_plan
from halp_iee.latency.layouts import Made, Reader, Reordering
from halp_iee.latency.terms import terms_of
from halp_profiler import table as tables
from halp_profiler.backends.onnx_kernels import Drawing as Onnx
from halp_profiler.backends.ort_cpu import OrtCpu
from halp_profiler.backends.ort_session import OrtSessions
from halp_profiler.kernel import Kernel
from halp_profiler.steps import Steps
from halp_profiler.surface import Surface
from halp_profiler.sweep import merged
from halp_profiler.table import Point
from tests.latency.networks import Drawing

SIZE = 12


@pytest.fixture(scope="module")
def backend():
    return OrtCpu()


def random_chain(rng, length=6):
    """(operation, channels) one after the other; a convolution first, as in every network."""
    widths = [int(rng.choice([1, 3, 4, 8, 12, 15, 16, 17, 20, 22, 32, 33, 36, 48, 50, 64])) for _ in range(length)]
    kinds = ["conv", *rng.choice(["conv", "conv", "depthwise", "max_pool", "relu", "grouped"], length - 1)]
    chain, c = [], 0
    for kind, width in zip(kinds, widths, strict=True):
        if kind == "grouped" and c % 2:
            kind = "relu"
        c = width if kind == "conv" else 2 * width if kind == "grouped" else c
        chain.append((str(kind), c))
    return chain


def as_onnx(chain):
    d = Onnx()
    x, c = d.input("x", (1, 3, SIZE, SIZE)), 3
    for kind, width in chain:
        if kind == "conv":
            x = d.node("Conv", [x, d.weight((width, c, 1, 1)), d.weight((width,))], kernel_shape=[1, 1])
        elif kind == "depthwise":
            weights = [d.weight((c, 1, 3, 3)), d.weight((c,))]
            x = d.node("Conv", [x, *weights], kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=c)
        elif kind == "grouped":
            weights = [d.weight((width, c // 2, 1, 1)), d.weight((width,))]
            x = d.node("Conv", [x, *weights], kernel_shape=[1, 1], group=2)
        elif kind == "max_pool":
            x = d.node("MaxPool", [x], kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
        else:
            x = d.node("Relu", [x])
        c = width
    d.output(x)
    return d.model()


def as_graph(chain):
    d = Drawing(size=SIZE)
    x = 0
    for i, (kind, width) in enumerate(chain):
        if kind == "conv":
            x = d.conv(x, Width(fixed=width), k=1, module=f"c{i}")
        elif kind == "depthwise":
            x = d.conv(x, Width(fixed=width), k=3, groups=width, module=f"c{i}")
        elif kind == "grouped":
            x = d.conv(x, Width(fixed=width), k=1, groups=2, module=f"c{i}", keeps_groups=True)
        elif kind == "max_pool":
            x = d.op("max_pool", x, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
        else:
            x = d.relu(x)
    return d.done()


def said(chain, backend, path):
    """The reorderings that the terms charge for: (to blocks, to the plain layout)."""
    graph = as_graph(chain)
    ranges = sweep_plan(graph)
    tables.create_or_check(path, backend.header())
    points = []
    for r in merged([*ranges, *backend.companions(ranges)]):
        ms = {"to_blocked": 1.0, "to_plain": 1000.0}.get(r.kernel.op, 0.0)
        for c_in in set(r.c_in):
            outs = {r.kernel.c_out_of(c_in)} if r.kernel.diagonal else set(r.c_out)
            points += [Point(r.kernel, c_in, c_out, ms, ms, ms, 1) for c_out in outs]
    tables.append(path, points)
    costs, missing = terms_of(graph, LatencyTable.load(path))
    assert not missing
    total = round(sum(float(c.ms(c.c_in({}), c.c_out({}))) for c in costs))
    return total % 1000, total // 1000


def test_a_chain_is_reordered_where_the_runtime_reorders_it(backend, tmp_path):
    if backend.block == 1:
        pytest.skip("this processor has no blocked layout")
    rng, sessions = np.random.default_rng(0), OrtSessions()
    for i in range(60):
        chain = random_chain(rng)
        nodes = [n.op_type for n in sessions.optimised(as_onnx(chain)).graph.node]
        real = nodes.count("ReorderInput"), nodes.count("ReorderOutput")
        assert said(chain, backend, tmp_path / f"{i}.jsonl") == real, chain


def flat(op, ms, low=1, high=64):
    kernel = Kernel(op, (8, 8))
    return Surface(kernel, [Point(kernel, c, c, ms, ms, ms, 1) for c in (low, high)], Steps())


def test_a_tensor_is_reordered_once_however_many_read_it():
    made = Made(Width(fixed=16), Steps(align=4, free_below=16))
    for readers in (1, 3):
        cost = Reordering(made, (Reader(),) * readers, flat("to_blocked", 5.0), flat("to_plain", 2.0))
        assert float(cost(16, 32)) == 2.0  # made in blocks, read plainly
        assert float(cost(17, 32)) == 0.0  # made plainly
    both = Reordering(made, (Reader(), Reader(4, 16)), flat("to_blocked", 5.0), flat("to_plain", 2.0))
    assert float(both(16, 32)) == 2.0
    assert float(both(17, 32)) == 5.0
    assert float(both(17, 33)) == 0.0  # an odd width: everyone wants it plain


def test_reorderings_broadcast_like_any_layer():
    made = Made(Width(fixed=16), Steps(align=4, free_below=16))
    cost = Reordering(made, (Reader(4, 16), Reader()), flat("to_blocked", 5.0), flat("to_plain", 2.0))
    into, out = np.arange(1, 65), np.arange(1, 65)
    square = cost(into[:, None], out[None, :])
    assert square.shape == (64, 64)
    for a in (1, 15, 16, 17, 20, 63):
        np.testing.assert_array_equal(square[a - 1], [float(cost(a, c)) for c in out])
