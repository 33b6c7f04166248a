"""Which weights of a network may be made sparse."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from halp_iee.errors import UsageError

Kind = Literal["conv", "linear"]
KINDS: tuple[Kind, ...] = ("conv", "linear")


@dataclass(frozen=True)
class SparseLayer:
    """One weight tensor that is to be sparse.

    Attributes:
        name: qualified name of the layer; the parameter is `name.weight`.
        kind: `conv` or `linear`.
        shape: of the weight, (outputs, inputs a group, *kernel) unless `transposed`.
        groups: of the convolution; 1 for linear layers.
        transposed: whether it is a transposed convolution, whose weight is (inputs, outputs, *kernel).
        first: whether it is the network's first convolution, which a uniform distribution keeps dense.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    first: bool = False

    @property
    def parameter(self) -> str:
        """Qualified name of the weight."""
        return f"{self.name}.weight" if self.name else "weight"

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def rows(self) -> int:
        """Neurons: rows of the weight as a matrix."""
        return self.shape[0]

    @property
    def columns(self) -> int:
        """Fan-in of a neuron: inputs a group times kernel positions."""
        return prod(self.shape[1:])


def sparse_layers(
    model: nn.Module,
    *,
    exclude: Sequence[str] = (),
    kinds: Sequence[str] = KINDS,
    depthwise: bool = False,
) -> tuple[SparseLayer, ...]:
    """The convolutions and linear layers of a network, in the order of its definition.

    Attention's packed input projections are not among them: they belong to `nn.MultiheadAttention`
    itself, not to a linear layer, and the papers keep them dense (SRigL, appendix D.3). A weight that
    two layers share is listed once.

    Args:
        model: any module.
        exclude: names of layers, or shell patterns of names (`layer1.*`), that stay dense.
        kinds: which of `conv` and `linear` to list.
        depthwise: whether to list convolutions with one input channel a group as well. RigL keeps them
            dense: they hold few weights and every one is needed.

    Raises:
        UsageError: a name in `exclude` fits no layer, a kind is unknown, or no layer is left.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise UsageError(f"unknown kind of layer {unknown[0]!r}", f"there are {', '.join(KINDS)}", "choose of them")
    found: list[SparseLayer] = []
    first, seen = True, set()
    for name, module in model.named_modules():
        kind: Kind = "conv" if isinstance(module, _ConvNd) else "linear"
        if not isinstance(module, (_ConvNd, nn.Linear)):
            continue
        weight = module._parameters.get("weight")
        if weight is None or id(weight) in seen:
            continue
        seen.add(id(weight))
        groups = int(module.groups) if isinstance(module, _ConvNd) else 1
        layer = SparseLayer(
            name, kind, tuple(weight.shape), groups, isinstance(module, _ConvTransposeNd), kind == "conv" and first
        )
        first = first and kind != "conv"
        found.append(layer)
    for wanted in exclude:
        if not any(fnmatch.fnmatchcase(layer.name, wanted) for layer in found):
            raise UsageError(
                f"the layer {wanted!r} cannot be excluded",
                "no convolution or linear layer of the network has such a name",
                f"its layers are {_some([layer.name for layer in found])}",
            )
    chosen = tuple(
        layer for layer in found
        if layer.kind in kinds
        and not any(fnmatch.fnmatchcase(layer.name, wanted) for wanted in exclude)
        and (depthwise or layer.groups == 1 or layer.shape[1] > 1)
    )  # fmt: skip
    if not chosen:
        raise UsageError(
            "nothing in this network can be made sparse",
            f"no {' or '.join(kinds)} layer is left of {len(found)}",
            "exclude fewer layers, or allow more kinds",
        )
    return chosen


def _some(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def checked_sparsity(sparsity: float, of: str = "the network") -> float:
    """`sparsity` if it lies in [0, 1).

    Raises:
        UsageError: it does not.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not 0.0 <= sparsity < 1.0:
        raise UsageError(
            f"a sparsity of {sparsity!r} is impossible for {of}",
            "it is the fraction of weights that are zero and must lie in [0, 1)",
            "give for example 0.9 for nine weights in ten",
        )
    return float(sparsity)
