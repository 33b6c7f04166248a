"""From settings to budgets: which layers become sparse, and how much of each lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from halp_iee.errors import UsageError
from halp_iee.sparsity.distributions import distribute
from halp_iee.sparsity.layers import KINDS, SparseLayer, checked_sparsity, sparse_layers
from halp_iee.sparsity.patterns import IndependentPattern, Pattern, kernel_sparsity


@dataclass(frozen=True)
class SparseConfig:
    """What every method needs to know.

    Attributes:
        sparsity: fraction of zeros in [0, 1); None: that of the pattern, where it has only one.
        pattern: see `halp_iee.sparsity.pattern`.
        distribution: `uniform`, `erk`, `global`, or a mapping from layer to sparsity. None: `uniform` for a
            pattern with one density, else `erk`.
        init: the distribution that `global` begins from.
        exclude: names or shell patterns of layers that stay dense.
        kinds: kinds of layers that become sparse.
        depthwise: whether depthwise convolutions do too.
        every: Delta T, optimizer steps from one update to the next.
        stop: fraction of the training after which the masks stay as they are.
        seed: of random masks and random growth.
        as_published: take the sparsity of the pattern `kernel` as MEST's reference code takes it, which converts
            twice: 0.9 asked for makes 77.5% zeros. The other known faults are not to be had: see docs/methods.
    """

    sparsity: float | None = None
    pattern: str | Pattern = "unstructured"
    distribution: str | Mapping[str, float] | None = None
    init: str = "erk"
    exclude: tuple[str, ...] = ()
    kinds: tuple[str, ...] = KINDS
    depthwise: bool = False
    every: int = 100
    stop: float = 0.75
    seed: int = 0
    as_published: bool = False

    def __post_init__(self) -> None:
        if self.as_published and (name := getattr(self.pattern, "name", self.pattern)) != "kernel":
            raise UsageError(
                f"as_published changes nothing with the pattern {name}",
                "it is for the sparsities of MEST's pattern kernel", "leave it out",
            )  # fmt: skip
        if self.every < 1:
            raise UsageError(
                f"masks cannot be updated every {self.every} steps", "it must be 1 or more", "leave out every="
            )
        if not 0.0 <= self.stop <= 1.0:
            raise UsageError(
                f"updates cannot stop at {self.stop:g} of the training", "it is a fraction in [0, 1]", "give 0.75"
            )


@dataclass(frozen=True)
class Plan:
    """What a configuration means for a network.

    Attributes:
        layers: the layers that become sparse.
        budget: layer -> atoms that may live.
        dense: layer -> weights, of those that the distribution keeps dense.
        sparsity: the one asked for; of a given distribution, that of its sparse layers together.
        distribution: the one asked for, or its default.
    """

    layers: tuple[SparseLayer, ...]
    budget: dict[str, int]
    dense: dict[str, int]
    sparsity: float
    distribution: str | Mapping[str, float]


def plan(model: nn.Module, config: SparseConfig, pattern: Pattern, who: str) -> Plan:
    """Budgets of every layer.

    Args:
        model: the network.
        config: the settings.
        pattern: the one that they name.
        who: the method, for its errors.

    Raises:
        UsageError: the settings cannot be met; names the layer.
    """
    layers = sparse_layers(model, exclude=config.exclude, kinds=config.kinds, depthwise=config.depthwise)
    sparsity = _asked(config, pattern, who)
    distribution = config.distribution
    if distribution is None:
        distribution = "erk" if pattern.density is None else "uniform"
    ranked = distribution == "global"
    if ranked and not isinstance(pattern, IndependentPattern):
        raise UsageError(
            f"the pattern {pattern.name} cannot have a global distribution",
            "what may live in one place depends on what lives beside it, so layers cannot share one ranking",
            "take erk or uniform",
        )
    counts = distribute(layers, sparsity, distribution, init=config.init)
    # In one ranking no layer is safe, however dense it begins.
    chosen = tuple(la for la in layers if (ranked and sparsity > 0) or counts[la.name] < la.numel)
    budget = {}
    for layer in chosen:
        pattern.check(layer)
        wanted = counts[layer.name]
        if pattern.density is not None:  # its own count, which the sparsity may miss by rounding alone
            own = round(layer.numel * pattern.density)
            wanted = own if abs(own - wanted) <= 1 else wanted
        budget[layer.name] = pattern.atoms(layer, wanted)
    if isinstance(distribution, Mapping):
        sparsity = 1.0 - sum(counts[la.name] for la in chosen) / max(1, sum(la.numel for la in chosen))
    dense = {layer.name: layer.numel for layer in layers if layer.name not in budget}
    return Plan(chosen, budget, dense, sparsity, distribution)


def check_optimizer(optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter]) -> None:
    """Refuse an optimizer that does not hold the weight of every one of these layers.

    Raises:
        UsageError: names the first that is missing.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, weight in weights.items():
        if id(weight) not in held:
            raise UsageError(
                "the optimizer does not fit the model",
                f"it does not hold the weight of layer {name!r}",
                "build the optimizer from model.parameters() after the model is on its device, or exclude the layer",
            )


def _asked(config: SparseConfig, pattern: Pattern, who: str) -> float:
    """The sparsity that is asked for, or the only one that the pattern has."""
    only = None if pattern.density is None else 1.0 - pattern.density
    if config.sparsity is not None and isinstance(config.distribution, Mapping):
        raise UsageError(
            f"{who} is told twice how sparse to be",
            f"a sparsity of {config.sparsity!r} was given, and a distribution that says it of every layer",
            "leave one of them out",
        )
    if config.sparsity is None and only is None and not isinstance(config.distribution, Mapping):
        raise UsageError(
            f"{who} needs a sparsity",
            f"the pattern {pattern.name} can have any",
            "give sparsity=0.9 for nine zeros in ten weights",
        )
    if config.sparsity is None:
        return only or 0.0
    asked = checked_sparsity(config.sparsity)
    if config.as_published:
        asked = kernel_sparsity(asked)  # of the kernels; the code then takes it for that of the weights
    if only is not None and abs(asked - only) > 1e-9:
        raise UsageError(
            f"the pattern {pattern.name} cannot have a sparsity of {asked:g}",
            f"it has {only:g} and no other",
            "leave out the sparsity, or take another pattern",
        )
    return asked
