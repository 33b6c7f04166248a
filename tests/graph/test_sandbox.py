"""The walks over a network agree with the library's, and compiled parts are seen as they were written."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

from halp_iee.graph import trace
from halp_iee.graph.sandbox import modules_of, named_tensors, parameter_names, walk, without_collection
from tests.graph.architectures import ARCHITECTURES
from tests.graph.architectures import build as build_architecture
from tests.graph.nasty import NASTY, build
from tests.graph.nasty_more import MORE
from tests.graph.selections import halves


class Shared(nn.Module):
    """One layer under three names, one weight under two, an entry that is None."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.again = nn.ModuleList([self.a, nn.Sequential(self.a), nn.Linear(4, 4)])
        self.again[2].weight = self.a.weight
        self.nothing: nn.Module | None = None
        self.register_module("none", None)
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("empty", None)

    def forward(self, x: Tensor) -> Tensor:
        return self.again[2](self.again[1](self.a(x))) + self.count


MODELS = [Shared(), *(build(kind)[0] for kind in (*NASTY, *MORE)), *(build_architecture(k)[0] for k in ARCHITECTURES)]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_the_walks_are_those_of_the_library(model: nn.Module) -> None:
    assert walk(model) == list(model.named_modules(remove_duplicate=False))
    assert modules_of(model) == list(model.modules())
    library = dict(model.named_parameters(remove_duplicate=False))
    assert parameter_names(model) == library.keys()
    library.update(model.named_buffers(remove_duplicate=False))
    own = named_tensors(model)
    assert list(own) == list(library)
    assert all(own[name] is library[name] for name in own)


@pytest.mark.parametrize("kind", MORE[:4], ids=lambda kind: kind.__name__)
def test_a_compiled_network_has_the_groups_of_the_plain_one(kind: type[nn.Module]) -> None:
    model, inputs = build(kind)
    plain = trace(model, inputs)
    model.compile(backend="eager")
    compiled = trace(model, inputs)
    assert [(g.name, g.size, g.reason) for g in compiled.groups] == [(g.name, g.size, g.reason) for g in plain.groups]
    compiled.slim(halves(compiled))


def test_a_forward_pass_that_belongs_to_another_network_is_told() -> None:
    model, other = nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(3, 4))
    assert not trace(model, torch.randn(2, 3)).notes
    model.forward = other.forward  # type: ignore[method-assign]
    graph = trace(model, torch.randn(2, 3))
    assert not any(group.prunable for group in graph.groups)
    assert any("none of the network's parameters" in note for note in graph.notes)


@pytest.mark.parametrize("on", [True, False])
def test_the_garbage_collector_is_left_as_it_was(on: bool) -> None:
    try:
        (gc.enable if on else gc.disable)()
        with without_collection():
            assert not gc.isenabled()
            with without_collection():
                pass
            assert not gc.isenabled()
        assert gc.isenabled() is on
    finally:
        gc.enable()
