"""How many weights each layer keeps: pure functions from shapes to counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from halp_iee.errors import UsageError
from halp_iee.sparsity.layers import SparseLayer, checked_sparsity

Counts = dict[str, int]
"""Layer name -> weights that live."""

DISTRIBUTIONS = ("uniform", "erk", "global")


def nonzeros(numel: int, sparsity: float) -> int:
    """Weights left of `numel`: `n - floor(S n)`, as RigL counts. A hair of rounding error does not cost a weight."""
    return numel - math.floor(sparsity * numel + 1e-9 * numel)


def uniform(layers: Sequence[SparseLayer], sparsity: float, *, first_dense: bool = True) -> Counts:
    """The same sparsity in every layer, the first convolution dense.

    Source: RigL, section 3 (1): its weights are few and all the rest reads them.
    """
    checked_sparsity(sparsity)
    return {
        layer.name: layer.numel if first_dense and layer.first else nonzeros(layer.numel, sparsity) for layer in layers
    }


def erk_densities(layers: Sequence[SparseLayer], sparsity: float, power: float = 1.0) -> dict[str, float]:
    """Erdos-Renyi-Kernel: density of layer l proportional to sum(dims) / prod(dims), at most 1.

        density_l = eps p_l,  p_l = (sum(dims_l) / prod(dims_l))^power
        eps = (ones to keep in the others - zeros that the dense ones should have had) / sum p_l n_l

    over the layers that are not dense. While the largest eps p_l exceeds 1, **all** layers tied at that
    maximum are made dense and eps is found anew.

    Args:
        layers: what to distribute over.
        sparsity: of all of them together.
        power: 1 as published.

    Returns:
        Layer name -> density in (0, 1].

    Source: Mocanu et al. 2018; RigL, section 3 (1) and its capacity rule.
    """
    checked_sparsity(sparsity)
    raw = {layer.name: (sum(layer.shape) / math.prod(layer.shape)) ** power for layer in layers}
    dense: set[str] = set()
    while True:
        others = [layer for layer in layers if layer.name not in dense]
        if not others:
            return dict.fromkeys(raw, 1.0)
        keep = sum(nonzeros(layer.numel, sparsity) for layer in others)
        owed = sum(math.floor(sparsity * layer.numel) for layer in layers if layer.name in dense)
        eps = (keep - owed) / sum(raw[layer.name] * layer.numel for layer in others)
        top = max(raw[layer.name] for layer in others)
        if eps * top <= 1.0:
            return {name: 1.0 if name in dense else eps * p for name, p in raw.items()}
        dense |= {layer.name for layer in others if raw[layer.name] == top}


def erk(layers: Sequence[SparseLayer], sparsity: float, *, power: float = 1.0) -> Counts:
    """Counts at the densities of `erk_densities`; the first convolution is treated as any other layer.

    Raises:
        UsageError: a layer would be left without a weight.
    """
    densities = erk_densities(layers, sparsity, power)
    counts = {layer.name: nonzeros(layer.numel, 1.0 - densities[layer.name]) for layer in layers}
    return _none_empty(layers, counts)


def given(layers: Sequence[SparseLayer], sparsities: Mapping[str, float]) -> Counts:
    """The sparsity that a person gives for each layer; a layer that is not named is dense.

    Raises:
        UsageError: a name that is no layer, or a sparsity outside [0, 1).
    """
    names = {layer.name for layer in layers}
    for name, value in sparsities.items():
        if name not in names:
            raise UsageError(
                f"the distribution names a layer {name!r}", "there is no such sparse layer in the network",
                "correct the name, or leave it out",
            )  # fmt: skip
        checked_sparsity(value, f"layer {name!r}")
    counts = {layer.name: nonzeros(layer.numel, sparsities.get(layer.name, 0.0)) for layer in layers}
    return _none_empty(layers, counts)


def distribute(
    layers: Sequence[SparseLayer], sparsity: float, distribution: str | Mapping[str, float], *, init: str = "erk"
) -> Counts:
    """Counts of a distribution by name, or of a given one.

    `global` (the IEE paper's Non-Uniform) has no counts of its own: one ranking over all layers decides,
    beginning from those of `init`.

    Raises:
        UsageError: no such distribution, or one that cannot be met.
    """
    if not isinstance(distribution, str):
        return given(layers, distribution)
    checked_sparsity(sparsity)
    total = sum(layer.numel for layer in layers)
    if (1 - sparsity) * total < len(layers) - 1e-6:
        smallest = min(layers, key=lambda layer: layer.numel)
        raise UsageError(
            "the distribution cannot be met",
            f"a sparsity of {sparsity:g} leaves {(1 - sparsity) * total:.3g} of {total} weights, fewer than the "
            f"{len(layers)} layers, so layer {smallest.name!r} could have none",
            "lower the sparsity, or exclude layers",
        )
    name = init if distribution == "global" else distribution
    if name == "uniform":
        return uniform(layers, sparsity)
    if name == "erk":
        return erk(layers, sparsity)
    raise UsageError(
        f"unknown distribution {name!r}",
        f"there are {', '.join(DISTRIBUTIONS)}, or a mapping from layer to sparsity",
        "choose one of them",
    )


def _none_empty(layers: Sequence[SparseLayer], counts: Counts) -> Counts:
    for layer in layers:
        if counts[layer.name] < 1:
            raise UsageError(
                "the distribution cannot be met",
                f"layer {layer.name!r} of {layer.numel} weights would be left without any",
                "lower the sparsity, or exclude the layer",
            )
    return counts
