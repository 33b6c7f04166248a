"""The proof: what is not the masked network is not handed over, and the proof leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from halp_iee.errors import GraphError
from halp_iee.graph import trace
from halp_iee.graph.sandbox import tensors_in
from halp_iee.slim import build as slim_build
from halp_iee.slim.build import cut, prove, random_like
from tests.graph.base import conv, stir
from tests.graph.selections import halves


class Pooled(nn.Module):
    """Takes images of any size, and remembers the last."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = conv(3, 8, stride=4), conv(8, 8, stride=4), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.last = tuple(x.shape)
        return self.head(self.two(self.one(x)).mean((2, 3)))


class Flat(Pooled):
    """Takes images of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x)).flatten(1))


class Mixing(Flat):
    """Of nine smaller images it makes four rows, in which nothing is where the weights expect it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x)).view(-1, self.head.in_features))


CASES = [(Pooled, 1), (Flat, 1), (Mixing, 9)]


def made(kind: type[nn.Module], count: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = kind()
    stir(model)
    return model.eval(), torch.randn(count, 3, 96, 96)


def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The sizes of the inputs on which networks are run for the proof, as it goes on."""
    seen: list[tuple[int, ...]] = []
    run = slim_build.outputs

    def spy(model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> list[Tensor]:
        seen.extend(tuple(one.shape) for one in tensors_in((args, kwargs)))
        return run(model, args, kwargs)

    monkeypatch.setattr(slim_build, "outputs", spy)
    return seen


@pytest.mark.parametrize(("kind", "count"), CASES)
def test_random_images_are_smaller_where_the_network_takes_them_so(
    kind: type[nn.Module], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = made(kind, count)
    graph = trace(model, x)
    seen = shapes(monkeypatch)
    graph.slim(halves(graph))
    whole, small = (count, 3, 96, 96), (count, 3, 64, 64)
    if kind is Pooled:
        assert seen == [whole, small, whole, small]
    else:
        assert seen.count(whole) == 4  # the example and random ones, masked and slim


@pytest.mark.parametrize(("kind", "count"), CASES)
@pytest.mark.parametrize("name", ["one.0.weight", "two.1.running_var", "head.bias"])
def test_another_network_than_the_masked_one_is_refused(kind: type[nn.Module], count: int, name: str) -> None:
    model, x = made(kind, count)
    graph = trace(model, x)
    keep = {group: torch.as_tensor(units).numpy() for group, units in halves(graph).items()}
    small = cut(graph, keep, model)
    prove(graph, keep, small, model)
    with torch.no_grad():
        small.state_dict()[name].flatten()[0] += 0.5
    with pytest.raises(GraphError, match="masked and slim differ on the example inputs"):
        prove(graph, keep, small, model)


def test_a_difference_that_the_example_hides_is_found_by_the_random_inputs() -> None:
    model, x = made(Pooled, 1)
    graph = trace(model, torch.zeros_like(x))
    keep = {group: torch.as_tensor(units).numpy() for group, units in halves(graph).items()}
    small = cut(graph, keep, model)
    with torch.no_grad():
        small.one[0].weight += 0.1
    with pytest.raises(GraphError, match="masked and slim differ on random inputs"):
        prove(graph, keep, small, model)


def test_the_proof_leaves_nothing_behind_in_either_network() -> None:
    model, x = made(Pooled, 1)
    graph = trace(model, x)
    assert not hasattr(model, "last")
    assert not hasattr(graph.slim(halves(graph)), "last")
    assert not hasattr(model, "last")


def test_random_inputs_keep_what_is_not_an_image() -> None:
    given = (
        (torch.randn(2, 3, 128, 100), torch.randn(2, 70, 90)),
        {"ids": torch.arange(5), "map": torch.randn(1, 1, 64, 64)},
    )
    (image, tokens), named = random_like(given, smaller=True)
    assert image.shape == (2, 3, 64, 64)
    assert tokens.shape == (2, 70, 90)
    assert named["map"].shape == (1, 1, 64, 64)
    assert torch.equal(named["ids"], torch.arange(5))
