"""MACs, parameters and the bill of a training run, against figures counted by hand or printed in papers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from halp_iee.errors import CheckpointError
from halp_iee.graph.records import ChannelGroup, Op, Width
from halp_iee.measure.flops import count
from halp_iee.measure.training_cost import (
    STAGES,
    TrainingCost,
    iee_flops_per_sample,
    iee_structured_ratio,
    iee_unstructured_ratio,
    rigl_flops_per_sample,
)


def hooked(model: nn.Module, example: torch.Tensor) -> SimpleNamespace:
    """What a trace records of convolutions and linear layers, without groups; by hooks, not by the tracer."""
    ops: list[Op] = []

    def note(name):
        def hook(module, args, out):
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                kind, c_in, c_out = "conv", module.in_channels, module.out_channels
                attrs = {
                    "kernel_size": module.kernel_size,
                    "groups": module.groups,
                    "transposed": isinstance(module, nn.ConvTranspose2d),
                }
            else:
                kind, c_in, c_out, attrs = "linear", module.in_features, module.out_features, {}
            params = tuple(f"{name}.{key}".lstrip(".") for key, _ in module.named_parameters(recurse=False))
            shapes = tuple(args[0].shape), tuple(out.shape)
            ops.append(
                Op(
                    len(ops),
                    kind,
                    kind,
                    name,
                    (0,),
                    (0,),
                    *shapes,
                    Width(fixed=c_in),
                    Width(fixed=c_out),
                    params,
                    attrs,
                )
            )

        return hook

    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            module.register_forward_hook(note(name))
    with torch.no_grad():
        model.eval()(example)
    return SimpleNamespace(ops=tuple(ops), groups=(), axes={}, model=model, example_inputs=((example,), {}))


def test_resnet50_counts_what_the_literature_says():
    torchvision = pytest.importorskip("torchvision")
    counts = count(hooked(torchvision.models.resnet50(), torch.zeros(1, 3, 224, 224)))
    assert counts.params == 25_557_032
    assert counts.macs == 4_089_184_256  # convolutions 4,087,136,256 and the classifier 2,048,000
    assert counts.flops == 2 * counts.macs
    assert sum(layer.macs for layer in counts.layers) == counts.macs
    assert len(counts.layers) == 54


@pytest.mark.parametrize("batch", [1, 3])
def test_counts_are_for_one_sample_whatever_the_batch_of_the_trace(batch):
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, groups=2),  # 8 * 2 * 9 weights at 64 positions
        nn.ConvTranspose2d(8, 6, 2, stride=2),  # 8 * 6 * 4 weights at the 64 positions of its input
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip
    counts = count(hooked(net, torch.zeros(batch, 4, 8, 8)))
    assert [layer.macs for layer in counts.layers] == [8 * 2 * 9 * 64, 8 * 6 * 4 * 64, 30]
    assert counts.params == sum(p.numel() for p in net.parameters())


def chain(widths: list[int], depthwise: bool) -> tuple[nn.Module, SimpleNamespace]:
    """conv -> (depthwise) -> conv -> linear with its groups labelled by hand."""
    a, b = widths
    layers: dict[str, nn.Module] = {"one": nn.Conv2d(3, a, 3, padding=1)}
    if depthwise:
        layers["deep"] = nn.Conv2d(a, a, 3, padding=1, groups=a)
    layers |= {
        "two": nn.Conv2d(a, b, 1),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "fc": nn.Linear(b, 5),
    }
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    graph = hooked(net, torch.zeros(2, 3, 6, 6))
    graph.groups = (ChannelGroup("one", a, ("one",), True), ChannelGroup("two", b, ("two",), True))

    def axis(group: int, size: int) -> SimpleNamespace:
        return SimpleNamespace(group=np.full(size, group), unit=np.arange(size))

    graph.axes = {
        "one.weight": (axis(0, a), None, None, None), "one.bias": (axis(0, a),),
        "deep.weight": (axis(0, a), None, None, None), "deep.bias": (axis(0, a),),
        "two.weight": (axis(1, b), axis(0, a), None, None), "two.bias": (axis(1, b),),
        "fc.weight": (None, axis(1, b)),
    }  # fmt: skip
    return net, graph


@pytest.mark.parametrize("depthwise", [False, True])
def test_counts_at_any_widths_are_those_of_the_network_built_at_these_widths(depthwise):
    rng = np.random.default_rng(0)
    for _ in range(10):
        full = rng.integers(2, 12, 2)
        small = [int(rng.integers(1, n + 1)) for n in full]
        _, graph = chain(full.tolist(), depthwise)
        net, dense = chain(small, depthwise)
        found, true = count(graph, {"one": small[0], "two": small[1]}), count(dense)
        assert found == true
        assert found.params == sum(p.numel() for p in net.parameters())


def test_a_computed_weight_is_counted_by_its_channels():
    def conv(groups: int, c_in: Width, c_out: Width) -> Op:
        attrs = {"kernel_size": (3, 3), "groups": groups}
        return Op(0, "conv", "conv", "", (0,), (1,), (1, 8, 4, 4), (1, 8, 4, 4), c_in, c_out, (), attrs)

    live = Width((("g", 8, 1),))
    for groups, macs in ((1, 16 * 4 * 4 * 9), (8, 16 * 4 * 9), (2, 16 * 4 * 4 * 9)):
        graph = SimpleNamespace(
            ops=(conv(groups, live, live),),
            groups=(),
            axes={},
            model=nn.Module(),
            example_inputs=torch.zeros(1, 8, 4, 4),
        )
        assert count(graph, {"g": 4}).macs == macs


def test_an_operation_with_a_matrix_and_no_rule_is_named():
    net = nn.Module()
    net.table = nn.Parameter(torch.zeros(7, 3))
    op = Op(0, "other", "aten.mystery", "", (0,), (1,), (1, 3), (1, 3), Width(fixed=3), Width(fixed=3), ("table",))
    graph = SimpleNamespace(ops=(op, op), groups=(), axes={}, model=net, example_inputs=(torch.zeros(1, 3),))
    assert count(graph).uncounted == (("aten.mystery", 2),)


@pytest.mark.parametrize(("sparse", "printed", "exact"), [(2.0, 0.71, 0.708), (1.1, 0.39, 0.392)])
def test_structured_training_cost_is_the_papers(sparse, printed, exact):
    ratio = iee_structured_ratio(sparse, 4.1)
    assert round(ratio, 2) == printed
    assert round(ratio, 3) == exact
    assert ratio * 90 * 3 * 4.1 == pytest.approx(388.3 * sparse + 1.7 * 4.1, rel=1e-3)


@pytest.mark.parametrize(("gflops", "exact"), [(3.395, 0.463), (1.989, 0.306)])
def test_unstructured_training_cost_is_the_papers(gflops, exact):
    assert round(iee_unstructured_ratio(gflops, 8.189), 3) == exact
    assert iee_unstructured_ratio(gflops, 8.189) == pytest.approx((11 * gflops + 8.189) / 4 / (3 * 8.189))


def test_the_bill_of_a_run_agrees_with_the_formula():
    H, J, Q, rest, batch, macs, dense = 30, 20, 10, 140, 16, 400, 1000
    bill = TrainingCost(dense)
    for stage, steps in (("estimate", H), ("improve", J), ("explore", Q), ("train", rest)):
        bill = bill.add(stage, steps=steps, batch=batch, macs=macs)
    share = (H + J + Q) / (H + J + Q + rest)
    per_sample = iee_flops_per_sample(2.0 * macs, 2.0 * dense, update_share=share, stages=(H, J, Q))
    assert bill.flops == pytest.approx(per_sample * bill.samples)
    assert bill.ratio() == pytest.approx(per_sample / (6 * dense))
    assert bill.ratio(2 * bill.samples) == pytest.approx(bill.ratio() / 2)


def test_dense_training_costs_as_much_as_itself_and_a_run_without_steps_nothing():
    assert TrainingCost(7).add("dense", steps=3, batch=2, macs=1).ratio() == pytest.approx(1.0)
    assert TrainingCost(7).ratio() == 0.0


def test_the_bill_goes_through_a_checkpoint_and_goes_on_as_if_never_stopped():
    whole = parts = TrainingCost(11)
    for step, stage in enumerate(STAGES):
        whole = whole.add(stage, steps=step + 1, batch=4, macs=5 + step)
        parts = TrainingCost.from_json(parts.to_json()).add(stage, steps=step + 1, batch=4, macs=5 + step)
    assert whole == parts
    for broken in (
        {},
        {"dense_macs": 3, "stages": {"x": [1, 2, 3]}},
        {"dense_macs": 3, "stages": {"train": 3}},
        [],
    ):
        with pytest.raises(CheckpointError):
            TrainingCost.from_json(broken)


def test_rigl_pays_for_the_dense_gradient_once_in_a_while():
    assert rigl_flops_per_sample(1.0, 4.0, update_every=100) == pytest.approx((300 + 2 + 4) / 101)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "resnext50_32x4d", "shufflenet_v2_x0_5"])
def test_counts_at_random_widths_are_those_of_the_slim_network_traced_anew(name):
    torchvision = pytest.importorskip("torchvision")
    from halp_iee.graph import trace

    images = torch.randn(2, 3, 64, 64)
    graph = trace(getattr(torchvision.models, name)(num_classes=10).eval(), images)
    rng = np.random.default_rng(0)
    keep = {
        group.name: np.sort(rng.permutation(group.size)[: rng.integers(1, group.size + 1)])
        for group in graph.groups
        if group.prunable
    }
    found, slim = count(graph, graph.widths(keep)), count(trace(graph.slim(keep), images))
    assert (found.macs, found.params) == (slim.macs, slim.params)
    assert found.macs < count(graph).macs
