"""The modelled TITAN V against what was published of a real one (docs/results/modelled_titanv.md)."""

from math import prod

import pytest
import torch
import torchvision

from halp_iee.graph import trace
from halp_iee.latency import LatencyModel, LatencyTable, layers_of
from halp_profiler.backends.modelled import Modelled
from halp_profiler.datasheet import DATASHEETS
from halp_profiler.geometry import output_spatial

PUBLISHED = ((None, 1019), (3.00, 1213), (1.96, 1674), (1.11, 2610))  # GMACs, FPS at batch 256


@pytest.fixture(scope="module")
def graph():
    return trace(torchvision.models.resnet50(weights=None).eval(), torch.randn(1, 3, 224, 224))


def narrowed(graph, gmacs):
    """Every group narrowed by one factor, until the network has about so many multiply-accumulates."""
    layers = layers_of(graph)
    sizes = {g.name: g.size for g in graph.groups if g.prunable}

    def at(factor):
        return {name: max(8, round(size * factor / 8) * 8) for name, size in sizes.items()}

    def count(widths):
        return sum(
            layer.c_in(widths) * layer.c_out(widths) * prod((*layer.kernel.kernel_size, *output_spatial(layer.kernel)))
            for layer in layers if layer.kernel.op in ("conv", "linear")
        ) / 1e9  # fmt: skip

    factors = [f / 200 for f in range(60, 201)] if gmacs else [1.0]
    return min(map(at, factors), key=lambda widths: abs(count(widths) - (gmacs or 0)))


def test_the_modelled_titan_v_is_near_the_published_one_and_nearer_in_proportion(graph):
    fps = {}
    for fused in (True, False):
        backend = Modelled(DATASHEETS["titanv"], batch=256, fused=fused)
        for gmacs, _ in PUBLISHED:
            w = narrowed(graph, gmacs)
            ms = sum(backend.latency_ms(la.kernel, la.c_in(w), la.c_out(w)) for la in layers_of(graph))
            fps[fused, gmacs] = 256e3 / ms
    for gmacs, published in PUBLISHED:
        assert fps[False, gmacs] < published < fps[True, gmacs]
        assert fps[True, gmacs] == pytest.approx(published, rel=0.35)
        assert fps[True, gmacs] / fps[True, None] == pytest.approx(published / 1019, rel=0.06)


@pytest.mark.parametrize("batch", [1, 256])
def test_the_shipped_tables_predict_a_resnet50(graph, batch):
    table = LatencyTable.load(f"titanv-modelled-b{batch}-fp32-resnet50")
    assert (table.source, table.batch) == ("modelled", batch)
    model = LatencyModel(graph, table)
    assert not model.missing
    backend = Modelled(DATASHEETS["titanv"], batch=batch)
    for gmacs, _ in PUBLISHED:
        w = narrowed(graph, gmacs)
        exact = sum(backend.latency_ms(c.kernel, c.c_in(w), c.c_out(w)) for c in model.layers)
        assert model.predict(w) == pytest.approx(exact, rel=0.05)
