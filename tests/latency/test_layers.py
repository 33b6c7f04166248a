import torch

from halp_iee.graph import trace
from halp_iee.graph.records import Width
from halp_iee.latency.layers import layers_of, sweep_plan, unmodelled_of
from tests.latency.networks import Drawing, HandMade, residual_network


def described(graph):
    return [(layer.name, layer.kernel.op, layer.kernel.fused) for layer in layers_of(graph)]


def test_a_residual_network_becomes_the_kernels_that_a_runtime_runs():
    assert described(residual_network(1)) == [
        ("stem", "conv", ("relu",)),
        ("b0.conv1", "conv", ("relu",)),
        ("b0.conv2", "conv", ()),
        ("b0.short", "conv", ("add", "relu")),  # the last of the addition's producers to run
        ("pool", "global_pool", ()),
        ("fc", "linear", ()),
    ]


def test_every_operation_is_in_one_layer_or_costs_nothing_or_is_named():
    for blocks in range(4):
        graph = residual_network(blocks)
        in_layers = [i for layer in layers_of(graph) for i in layer.ops]
        assert len(in_layers) == len(set(in_layers))
        rest = {op.index for op in graph.ops} - set(in_layers) - {u.op for u in unmodelled_of(graph)}
        assert {graph.ops[i].kind for i in rest} <= {"view"}


def test_a_tensor_with_two_readers_ends_the_fusion():
    d = Drawing()
    y = d.op("batch_norm", d.conv(0, d.group("a", 8), module="a"))
    d.relu(y)
    d.relu(y)
    assert [kernel[1:] for kernel in described(d.done())] == [
        ("conv", ()), ("activation", ("relu",)), ("activation", ("relu",)),
    ]  # fmt: skip


def test_an_identity_shortcut_is_added_in_the_convolution_before_it():
    d = Drawing()
    width = d.group("a", 8)
    x = d.relu(d.conv(0, width, module="a"))
    d.relu(d.op("add", d.conv(x, width, module="b"), x))
    assert described(d.done())[1] == ("b", "conv", ("add", "relu"))


def test_preactivation_keeps_batch_norm_for_itself():
    d = Drawing()
    x = d.conv(0, d.group("a", 8), module="a")
    both = d.op(
        "cat",
        x,
        d.conv(x, d.group("b", 8), module="b"),
        width=Width((("a", 8, 1), ("b", 8, 1))),
        shape=(1, 16, 16, 16),
    )
    d.conv(d.relu(d.op("batch_norm", both)), d.group("c", 4), module="c")
    layers = layers_of(d.done())
    assert [(layer.kernel.op, layer.kernel.fused) for layer in layers[2:]] == [
        ("cat", ()), ("batch_norm", ("relu",)), ("conv", ()),
    ]  # fmt: skip
    assert (
        layers[2].c_in({"a": 3, "b": 4}) == layers[3].c_out({"a": 3, "b": 4}) == layers[4].c_in({"a": 3, "b": 4}) == 7
    )


def test_only_what_reads_the_networks_input_is_plain():
    layers = layers_of(residual_network(2))
    assert [layer.kernel.plain for layer in layers] == [True] + [False] * (len(layers) - 1)


def test_a_module_that_runs_twice_has_two_layers():
    d = Drawing()
    width = d.group("a", 8)
    x = d.conv(0, width, module="a")
    d.conv(d.conv(x, width, module="same"), width, module="same")
    assert [layer.name for layer in layers_of(d.done())] == ["a", "same", "same#2"]


def test_depthwise_and_grouped_convolutions_follow_one_axis():
    d = Drawing()
    width = d.group("a", 32)
    x = d.conv(0, width, module="a")
    x = d.conv(x, width, groups=32, module="depthwise")
    d.conv(x, Width((("a", 32, 2),)), groups=8, module="grouped")
    depthwise, grouped = (layer.kernel for layer in layers_of(d.done())[1:])
    assert (depthwise.group_width, depthwise.group_out, depthwise.diagonal) == (1, 1, True)
    assert (grouped.group_width, grouped.group_out, grouped.c_out_of(16)) == (4, 8, 32)


def test_a_convolution_that_keeps_its_groups_counts_the_channels_of_one():
    d = Drawing()
    x = d.conv(0, Width((("a", 8, 4),)), module="a")
    d.group("a", 8), d.group("b", 6), d.group("c", 3)
    x = d.relu(d.conv(x, Width((("b", 6, 4), ("c", 3, 8)), 4), groups=4, module="b", keeps_groups=True))
    d.conv(x, Width((("c", 3, 1),)), module="c")
    _, layer, after = layers_of(d.done())
    assert (layer.kernel.groups, layer.kernel.group_width, layer.kernel.fused) == (4, None, ("relu",))
    for widths in ({}, {"a": 3, "b": 2}, {"a": 1, "b": 1, "c": 1}):
        a, b, c = widths.get("a", 8), widths.get("b", 6), widths.get("c", 3)
        assert (layer.c_in(widths), layer.c_out(widths)) == (a, b + 2 * c + 1)
        assert layer.made(widths) == after.c_in(widths) == 4 * (b + 2 * c + 1)
    ranges = {r.kernel: (r.c_in, r.c_out) for r in sweep_plan(d.done())}
    assert ranges[layer.kernel] == ((1, 8), (4, 13))


def test_a_convolution_whose_groups_would_differ_has_no_kernel():
    d = Drawing()
    d.group("a", 6)
    x = d.conv(0, Width((("a", 6, 2),)), module="a")
    d.conv(x, Width((("a", 6, 2),)), groups=4, module="b", keeps_groups=True)
    assert [(one.name, one.reason) for one in unmodelled_of(d.done())] == [
        ("aten.conv in b", "its 4 groups do not all have as many channels")
    ]


def test_layers_that_run_one_kernel_share_it_in_the_plan():
    graph = residual_network(5)
    plan = sweep_plan(graph)
    assert len(plan) == len({r.kernel for r in plan}) == 6
    assert len(layers_of(graph)) == 5 * 3 + 3


def test_the_plan_reaches_every_width_that_the_groups_allow():
    graph = residual_network(2, channels=24)
    ranges = {r.kernel: r for r in sweep_plan(graph)}
    for units in (1, 7, 24):
        widths = {g.name: units for g in graph.groups}
        for layer in layers_of(graph):
            r = ranges[layer.kernel]
            assert r.c_in[0] <= layer.c_in(widths) <= r.c_in[1]
            assert r.c_out[0] <= layer.c_out(widths) <= r.c_out[1]


def test_a_group_that_cannot_be_pruned_fixes_its_axis():
    d = Drawing()
    d.conv(d.conv(0, d.group("a", 8, prunable=False), module="a"), d.group("b", 8), module="b")
    plan = sweep_plan(d.done())
    assert [(r.c_in, r.c_out) for r in plan] == [((3, 3), (8, 8)), ((8, 8), (1, 8))]


def test_what_has_no_kernel_is_named_with_its_reason():
    d = Drawing()
    x = d.conv(0, d.group("a", 8), module="a")
    d.op("fft", x, module="strange", name="aten.fft")
    d.op("activation", x, function="snake", module="odd")
    found = unmodelled_of(d.done())
    assert [u.op for u in found] == [1, 2]
    assert "fft" in found[0].reason
    assert "snake" in found[1].reason


def test_an_empty_network_has_no_layers():
    assert layers_of(HandMade((), ())) == ()


def test_a_traced_network_gives_the_same_layers_at_any_batch():
    from halp_iee.graph import trace

    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.nn.ReLU6(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(8, 4), torch.nn.GELU(), torch.nn.Linear(4, 2),
    ).eval()  # fmt: skip
    kernels = [
        [
            (layer.kernel, layer.c_in.full, layer.c_out.full)
            for layer in layers_of(trace(model, torch.randn(n, 3, 8, 8)))
        ]
        for n in (1, 4)
    ]
    assert kernels[0] == kernels[1]
    assert [(k.op, k.fused) for k, _, _ in kernels[0]] == [
        ("conv", ("relu",)), ("conv", ("relu6",)), ("global_pool", ()), ("linear", ("gelu",)), ("linear", ()),
    ]  # fmt: skip


class Assorted(torch.nn.Module):
    """One of each kind that torchvision's networks hold beside convolutions."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.norm = torch.nn.GroupNorm(4, 16)
        self.up = torch.nn.ConvTranspose2d(16, 8, 2, 2)
        self.line = torch.nn.Conv1d(8, 8, 3, padding=1)
        self.volume = torch.nn.Conv3d(1, 4, 3, padding=1)
        self.q, self.fc = torch.nn.Linear(8, 24), torch.nn.Linear(8, 5)
        self.ln = torch.nn.LayerNorm(8)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)  # channel shuffle
        a, b = x.chunk(2, 1)
        x = torch.nn.functional.pad(torch.cat([b, a], 1), (1, 1, 1, 1))
        x = self.up(torch.nn.functional.avg_pool2d(x, 2))
        tokens = self.ln(self.line(x.flatten(2)).transpose(1, 2))
        q, k, v = self.q(tokens).reshape(n, -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, -1, 8)
        z = self.volume(x.unsqueeze(1))
        return self.fc(y.mean(1)), z


def test_what_torchvision_holds_beside_convolutions_has_kernels():
    graph = trace(Assorted().eval(), torch.randn(1, 3, 8, 8))
    kernels = [layer.kernel for layer in layers_of(graph)]
    found = {k.op for k in kernels}
    wanted = {"group_norm", "transpose", "copy", "cat", "avg_pool", "conv_transpose", "layer_norm", "attention"}
    assert wanted <= found
    assert {len(k.spatial) for k in kernels if k.op == "conv"} == {1, 2, 3}
    assert any(k.op == "attention" and k.spatial == (2, 100) for k in kernels)
    assert all(layer.c_in.full >= 1 and layer.c_out.full >= 1 for layer in layers_of(graph))


def test_a_permutation_of_axes_of_length_one_costs_nothing():
    d = Drawing()
    x = d.conv(0, d.group("a", 8), module="a")
    pooled = d.op("global_pool", x, shape=(1, 8, 1, 1))
    d.op("permute", pooled, shape=(1, 1, 1, 8), dims=(0, 2, 3, 1))
    d.op("permute", x, shape=(1, 16, 16, 8), dims=(0, 2, 3, 1))
    assert [kernel[1] for kernel in described(d.done())] == ["conv", "global_pool", "transpose"]


def test_a_copy_that_the_exporter_leaves_out_is_no_layer_and_hides_no_reader():
    d = Drawing()
    x = d.conv(0, d.group("a", 8), module="a")
    d.conv(d.op("elementwise", x, name="aten.contiguous.default"), d.group("b", 8), module="b")
    assert [kernel[0] for kernel in described(d.done())] == ["a", "b"]
    assert not unmodelled_of(d.done())
