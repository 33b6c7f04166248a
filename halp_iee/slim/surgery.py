"""Give a module tensors of another size, in place, and make its attributes agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from halp_iee.errors import GraphError
from halp_iee.graph.attributes import put_number
from halp_iee.graph.sandbox import named_tensors, walk
from halp_iee.slim.attention import resize_attention

if TYPE_CHECKING:
    from halp_iee.graph.graph import ChannelGraph
    from halp_iee.graph.records import Keep

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

WEIGHT_NAMES = (
    "weight", "weight_v", "weight_orig", "parametrizations.weight.original1", "parametrizations.weight.original",
)  # fmt: skip
"""Where a layer keeps its weight: plain, or under weight norm and other parametrizations."""


def _weight(shapes: Shapes) -> Shape | None:
    return next((shapes[name] for name in WEIGHT_NAMES if name in shapes), None)


def groups_left(dense: Any, weight: Shape) -> int:
    """The convolution groups of which a weight is left, where whole groups were removed: their channels stay."""
    outer = dense.in_channels if dense.transposed else dense.out_channels
    return weight[0] // (outer // dense.groups) if dense.groups > 1 else 1


def _convolution(module: Any, dense: Any, shapes: Shapes, kept_groups: int | None = None) -> None:
    weight = _weight(shapes)
    if weight is None:
        return
    module.groups = kept_groups or groups_left(dense, weight)
    first, second = weight[0], weight[1] * module.groups
    module.in_channels, module.out_channels = (first, second) if dense.transposed else (second, first)


def _linear(module: Any, dense: Any, shapes: Shapes) -> None:
    weight = _weight(shapes)
    if weight is not None:
        module.out_features, module.in_features = weight


def _per_channel(module: Any, dense: Any, shapes: Shapes) -> None:
    for name in ("weight", "running_mean"):
        if name in shapes:
            module.num_features = shapes[name][0]
            return


def _group_norm(module: Any, dense: Any, shapes: Shapes) -> None:
    if "weight" in shapes:
        module.num_channels = shapes["weight"][0]
        module.num_groups = max(1, module.num_channels * dense.num_groups // dense.num_channels)


def _layer_norm(module: Any, dense: Any, shapes: Shapes) -> None:
    if "weight" in shapes:
        module.normalized_shape = shapes["weight"]


def _prelu(module: Any, dense: Any, shapes: Shapes) -> None:
    if "weight" in shapes:
        module.num_parameters = shapes["weight"][0]


def _embedding(module: Any, dense: Any, shapes: Shapes) -> None:
    if "weight" in shapes:
        module.num_embeddings, module.embedding_dim = shapes["weight"]


def _attention(module: Any, dense: Any, shapes: Shapes) -> None:
    packed, own = shapes.get("in_proj_weight"), shapes.get("q_proj_weight")
    if packed is not None:
        resize_attention(module, dense, packed[0] // 3, packed[1])
    elif own is not None:
        resize_attention(module, dense, own[0], own[1])


def _recurrent(module: Any, dense: Any, shapes: Shapes) -> None:
    if "weight_ih_l0" in shapes:
        module.input_size = shapes["weight_ih_l0"][1]
        module.hidden_size = shapes["weight_ih_l0"][0] * dense.hidden_size // dense.weight_ih_l0.shape[0]
        if dense.proj_size:
            module.proj_size = shapes["weight_hr_l0"][0]


def _recurrent_cell(module: Any, dense: Any, shapes: Shapes) -> None:
    if "weight_ih" in shapes:
        module.input_size, module.hidden_size = shapes["weight_ih"][1], shapes["weight_hh"][1]


ATTRIBUTES: tuple[tuple[type[nn.Module], Callable[[Any, Any, Shapes], None]], ...] = (
    (nn.modules.conv._ConvNd, _convolution),
    (nn.Linear, _linear),
    (_NormBase, _per_channel),
    (nn.GroupNorm, _group_norm),
    (nn.LayerNorm, _layer_norm),
    (nn.RMSNorm, _layer_norm),
    (nn.PReLU, _prelu),
    (nn.Embedding, _embedding),
    (nn.MultiheadAttention, _attention),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _recurrent_cell),
)
"""Module class -> how its attributes follow from the shapes of its tensors."""


def resize_attributes(
    module: nn.Module, dense: nn.Module, shapes: Shapes, kept_groups: Mapping[str, int] | None = None
) -> None:
    """Make every submodule's size attributes agree with the shapes of its tensors.

    Args:
        module: changed in place.
        dense: a module of the same structure whose attributes have the full sizes.
        shapes: of every parameter and buffer, by qualified name.
        kept_groups: convolutions of which whole groups were not removed: module -> how many groups it has. The shapes
            alone do not tell the two ways apart.
    """
    local: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        owner, _, leaf = name.rpartition(".")
        local.setdefault(owner, {})[leaf] = shape
        marker = "parametrizations."
        if marker in owner:
            outer, _, rest = owner.rpartition(marker)
            local.setdefault(outer.rstrip("."), {})[f"{marker}{rest}.{leaf}"] = shape
    originals = dict(walk(dense))
    for name, submodule in walk(module):
        if name not in local:
            continue
        if isinstance(submodule, nn.modules.conv._ConvNd):
            _convolution(submodule, originals[name], local[name], (kept_groups or {}).get(name))
            continue
        for kind, resize in ATTRIBUTES:
            if isinstance(submodule, kind):
                resize(submodule, originals[name], local[name])
                break


def narrow(tensor: Tensor, positions: tuple[np.ndarray | None, ...]) -> Tensor:
    """The entries of a tensor at the given positions of each axis."""
    for axis, kept in enumerate(positions):
        if kept is not None:
            tensor = tensor.index_select(axis, torch.as_tensor(kept, device=tensor.device))
    return tensor


def replacing(current: Tensor, value: Tensor) -> Tensor:
    """`value` as the kind of thing that `current` is: a parameter that trains or not, or a plain tensor."""
    return nn.Parameter(value, requires_grad=current.requires_grad) if isinstance(current, nn.Parameter) else value


def put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace one parameter or buffer of a module by qualified name, as the same kind of thing."""
    owner_name, _, leaf = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    # setattr, not the dictionary: recurrent layers keep a second list of their weights.
    setattr(owner, leaf, tensor)


def slim_tensors(
    own: Mapping[str, Tensor], graph: ChannelGraph, keep: Keep, tensors: Mapping[str, Tensor] | None = None
) -> dict[tuple[str, ...], Tensor]:
    """The tensors of a network that `keep` gives another size, by all their names.

    Args:
        own, tensors: as for `slim_`.

    Raises:
        GraphError: `keep` is not valid, or a tensor is missing or of neither size.
    """
    positions = graph.positions(keep)
    made: dict[tuple[str, ...], Tensor] = {}
    for names in graph.shared_names:
        if names[0] not in positions:
            continue
        full = graph.full_shapes[names[0]]
        kept = positions[names[0]]
        want = tuple(size if one is None else len(one) for size, one in zip(full, kept, strict=True))
        if names[0] not in own:
            raise GraphError(
                "The network cannot be resized",
                f"it has no tensor {names[0]}",
                "Pass a module of the traced network's class",
            )
        current = own[names[0]]
        source = current if tensors is None else next((tensors[n] for n in names if n in tensors), current)
        if tuple(source.shape) == full:
            value = narrow(source.detach(), kept)
        elif tuple(source.shape) == want:
            value = source.detach()
        else:
            raise GraphError(
                "The network cannot be resized",
                f"{names[0]} has shape {tuple(source.shape)}, but {full} (full) or {want} (slim) is needed",
                "Pass full-sized values in `tensors`",
            )
        value = value.to(device=current.device, dtype=current.dtype)
        if value.data_ptr() == source.data_ptr() and source is not current and value.device.type != "meta":
            value = value.clone()
        made[names] = value
    return made


def slim_(module: nn.Module, graph: ChannelGraph, keep: Keep, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Give `module` the sizes that `keep` says, in place; full again with ``keep={}`` and full tensors.

    Args:
        module: of the structure of ``graph.model``, at any size.
        graph: of the full network.
        keep: group name -> units that stay.
        tensors: where the values come from, by qualified name; each either full (its
            kept entries are taken) or already of the wanted size. Default: the module's own.

    Raises:
        GraphError: `keep` is not valid, or a tensor is missing or of neither size.
    """
    own = named_tensors(module)
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    for names, value in slim_tensors(own, graph, keep, tensors).items():
        replacement = replacing(own[names[0]], value)
        for name in names:
            put(module, name, replacement)
            shapes[name] = tuple(value.shape)
    fit_numbers(module, graph, keep, shapes)


def fit_numbers(module: nn.Module, graph: ChannelGraph, keep: Keep, shapes: Shapes) -> None:
    """Make every number that a module keeps agree with its tensors, which have their sizes already."""
    resize_attributes(module, graph.model, shapes, graph.structure.kept_groups)
    for (owner, name, item), number in graph.numbers(keep).items():
        put_number(module.get_submodule(owner), name, item, number)
