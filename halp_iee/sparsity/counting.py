"""What a sparse network costs: FLOPs of a forward pass and bytes on disk, from shapes and densities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from halp_iee.sparsity.layers import SparseLayer


@dataclass(frozen=True)
class Work:
    """Where a layer's weights are used.

    Attributes:
        layer: the layer.
        positions: output positions of one sample at which every weight is used once.
        outputs: elements of its output for one sample.
    """

    layer: SparseLayer
    positions: int
    outputs: int


def work(model: nn.Module, layers: tuple[SparseLayer, ...], images: torch.Tensor) -> tuple[Work, ...]:
    """Run the network once and note how often each layer's weights are used for one sample.

    Args:
        model: left in the mode that it came in.
        layers: of `sparse_layers`.
        images: a batch; its values do not matter (a `meta` tensor with a `meta` model does).
    """
    found: dict[str, list[int]] = {layer.name: [0, 0] for layer in layers}
    batch = images.shape[0]

    def noting(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            channels = output.shape[1] if isinstance(module, _ConvNd) else output.shape[-1]
            found[name][0] += output.numel() // channels // batch
            found[name][1] += output.numel() // batch

        return note

    modules = dict(model.named_modules())
    hooks = [modules[layer.name].register_forward_hook(noting(layer.name)) for layer in layers]
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(images)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return tuple(Work(layer, *found[layer.name]) for layer in layers)


def forward_flops(layers: tuple[Work, ...], nonzeros: Mapping[str, int] | None = None) -> int:
    """FLOPs of one sample: 2 for each live weight and position, and one for each output.

    Args:
        layers: of `work`.
        nonzeros: live weights of each layer; None: dense.

    Source: the count behind SRigL's table 5 and RigL's (2 MACs + number of outputs).
    """
    return sum(2 * used.positions * _live(used.layer, nonzeros) + used.outputs for used in layers)


def size_bytes(layers: tuple[Work, ...], nonzeros: Mapping[str, int] | None, others: int) -> float:
    """Bytes on disk: 4 a live weight, one bit a weight of every sparse layer, and 4 for each other parameter.

    Source: RigL's README.
    """
    total = 4.0 * others
    for used in layers:
        n = _live(used.layer, nonzeros)
        total += 4.0 * n + (used.layer.numel / 8 if n < used.layer.numel else 0.0)
    return total


def _live(layer: SparseLayer, nonzeros: Mapping[str, int] | None) -> int:
    return layer.numel if nonzeros is None else nonzeros.get(layer.name, layer.numel)
