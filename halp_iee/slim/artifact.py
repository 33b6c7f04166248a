"""The slim network on disk: a safetensors file with its recipe in the metadata.

The file holds every tensor at its slim size and, as JSON, which units of which group
are kept, the library's version and where its latency comes from. It is applied to the
original network's own class: nothing in it is executed, and nothing is pickled.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from halp_iee.errors import ArtifactError, GraphError
from halp_iee.graph.attributes import numbers_of, put_number
from halp_iee.graph.copies import duplicate, skeleton
from halp_iee.graph.keep import checked
from halp_iee.graph.records import Keep
from halp_iee.graph.sandbox import first_line, named_tensors, walk
from halp_iee.slim.branches import without
from halp_iee.slim.build import RECIPE, recipe_of
from halp_iee.slim.surgery import ATTRIBUTES, WEIGHT_NAMES, put, replacing, resize_attributes
from halp_profiler.files import whole

if TYPE_CHECKING:
    from halp_iee.graph.graph import ChannelGraph

FORMAT = "halp-iee slim network"
VERSION = 2
"""Files of version 1 do not say how many groups convolutions have, and are written where that need not be said."""

_CARRIED = ("keep", "groups", "earlier", "numbers", "removed", "convolutions")


def _version() -> str:
    try:
        return metadata.version("halp-iee")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def _distinct(named: Mapping[str, Tensor]) -> list[tuple[tuple[str, ...], Tensor]]:
    """Each tensor once, with all its names."""
    names: dict[int, list[str]] = {}
    for name, tensor in named.items():
        names.setdefault(id(tensor), []).append(name)
    return [(tuple(group), named[group[0]]) for group in names.values()]


def save(
    small: nn.Module,
    path: str | os.PathLike[str],
    graph: ChannelGraph | None = None,
    keep: Keep | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write a slim network; the file appears whole or not at all.

    Args:
        small: from ``graph.slim``, trained further or not.
        path: where to write; an existing file is replaced.
        graph, keep: only for a network that ``graph.slim`` did not make.
        provenance: anything JSON can hold, such as where the latency comes from.

    Raises:
        ArtifactError: it is not known which units are kept, or the file cannot be written.
    """
    path = Path(path)
    what = f"The network cannot be saved to {path}"
    recipe = small.__dict__.get(RECIPE)
    if graph is not None and keep is not None:
        recipe = recipe_of(graph, checked(keep, graph.groups))
    if recipe is None:
        raise ArtifactError(
            what,
            "it is not known which units it keeps",
            "Save what graph.slim returned, or pass graph and keep",
        )
    document = {
        "format": FORMAT,
        "version": VERSION if "convolutions" in recipe else 1,
        "library": _version(),
        "class": f"{type(small).__module__}.{type(small).__qualname__}",
        **recipe,
        "provenance": dict(provenance or {}),
    }
    try:
        text = json.dumps(document, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArtifactError(
            what, f"its provenance is not JSON: {error}", "Pass plain numbers, strings and lists"
        ) from error
    tensors = {names[0]: t.detach().to("cpu").contiguous() for names, t in _distinct(named_tensors(small))}
    # safetensors refuses tensors that share memory without being one tensor.
    seen: set[int] = set()
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        if pointer in seen or tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
            tensors[name] = tensor.clone()
        seen.add(pointer)
    try:
        with whole(path) as partial:
            save_file(tensors, partial, metadata={"halp_recipe": text})
    except (OSError, SafetensorError) as error:
        raise ArtifactError(what, first_line(error), "Choose a folder that exists and can be written to") from error
    return path


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The recipe of a saved network: keep, groups, library, provenance.

    Raises:
        ArtifactError: the file is missing or is not such a file.
    """
    return _read(Path(path), with_tensors=False)[0]


def _read(path: Path, *, with_tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    what = f"The saved network {path} cannot be read"
    remedy = "Pass a file that halp_iee.save wrote"
    if not path.is_file():
        raise ArtifactError(what, "there is no such file", remedy)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get("halp_recipe")
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
        raise ArtifactError(what, f"it is broken: {first_line(error)}", remedy) from error
    if text is None:
        raise ArtifactError(what, "it is a safetensors file without a recipe", remedy)
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(what, f"its recipe is not JSON: {first_line(error)}", remedy) from error
    if not isinstance(recipe, dict) or recipe.get("format") != FORMAT:
        raise ArtifactError(what, "its recipe is of another format", remedy)
    if recipe.get("version") not in (1, VERSION):
        raise ArtifactError(
            what,
            f"its format is version {recipe.get('version')!r}, this library reads {VERSION}",
            "Update halp-iee",
        )
    earlier = recipe.get("earlier", [])
    if not isinstance(earlier, list) or not all(_says_what_is_kept(one) for one in (recipe, *earlier)):
        raise ArtifactError(what, "its recipe does not say what is kept", remedy)
    return recipe, tensors


def _says_what_is_kept(recipe: Any) -> bool:
    """Whether a recipe's groups have sizes, and its selection names distinct units within them."""
    if not isinstance(recipe, dict):
        return False
    keep, groups = recipe.get("keep"), recipe.get("groups")
    if not isinstance(keep, dict) or not isinstance(groups, dict):
        return False
    if not all(type(size) is int and size > 0 for size in groups.values()):
        return False
    return all(
        isinstance(units, list)
        and name in groups
        and 0 < len(units) <= groups[name]
        and all(type(unit) is int and 0 <= unit < groups[name] for unit in units)
        and len(set(units)) == len(units)
        for name, units in keep.items()
    )


def _item(text: str) -> int | None:
    """The position that a recipe's key names; None where it names none."""
    return int(text) if re.fullmatch(r"-1|[0-9]{1,4}", text, re.ASCII) else None


def _put_numbers(small: nn.Module, numbers: Any, what: str, remedy: str) -> None:
    """Set the sizes that modules keep as numbers; only numbers that are there, and none larger than it was.

    Raises:
        ArtifactError: the network has no such number.
    """
    modules = dict(small.named_modules(remove_duplicate=False))
    if not isinstance(numbers, dict):
        raise ArtifactError(what, "its recipe's numbers are not a mapping", remedy)
    for key, value in numbers.items():
        owner, name, item = parts if len(parts := key.rsplit("|", 2)) == 3 else ("", "", "")
        module = modules.get(owner)
        # The numbers of a layer of the library follow its weights; the others, such as its stride, are no sizes.
        free = module is not None and not isinstance(module, tuple(kind for kind, _ in ATTRIBUTES))
        known = {(n, i): v for n, i, v in numbers_of(module)} if module is not None and free else {}
        at = _item(item)
        old = None if at is None else known.get((name, at))
        if module is None or at is None or old is None or type(value) is not int or not 0 < value <= old:
            raise ArtifactError(what, f"it sets {key!r} to {value!r}, which the network does not have", remedy)
        put_number(module, name, at, value)


def _kept_groups(
    dense: nn.Module, groups: Any, shapes: Mapping[str, tuple[int, ...]], what: str, remedy: str
) -> dict[str, int]:
    """The convolutions that keep their number of groups; it must fit their weights.

    Raises:
        ArtifactError: the network has no such convolution, or it cannot have that many groups.
    """
    if not isinstance(groups, dict):
        raise ArtifactError(what, "its recipe's convolutions are not a mapping", remedy)
    modules = dict(walk(dense))
    for name, count in groups.items():
        module = modules.get(name)
        leaves = [f"{name}.{leaf}".lstrip(".") for leaf in WEIGHT_NAMES]
        weight = next((shapes[leaf] for leaf in leaves if leaf in shapes), None)
        most = module.groups if isinstance(module, nn.modules.conv._ConvNd) and weight is not None else 0
        if weight is None or type(count) is not int or not 0 < count <= most or weight[0] % count:
            raise ArtifactError(what, f"it gives {name!r} {count!r} groups, which the network cannot have", remedy)
    return groups


def _remove(small: nn.Module, removed: Any, what: str, remedy: str) -> None:
    """Take out the residual branches that the network was saved without.

    Raises:
        ArtifactError: the network has no such module.
    """
    names = isinstance(removed, dict) and all(
        isinstance(name, str) and name and isinstance(stays, str) for name, stays in removed.items()
    )
    if not names:
        raise ArtifactError(what, "its recipe's removed branches are not names", remedy)
    try:
        without(small, removed)
    except GraphError as error:
        raise ArtifactError(what, error.why, remedy) from error


def load(path: str | os.PathLike[str], model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """Build the slim network that a file holds.

    Args:
        path: written by `save`.
        model: the original network (copied, not changed), or a function that builds it.

    Raises:
        ArtifactError: the file is missing, broken, hostile, or of another network.
    """
    path = Path(path)
    recipe, stored = _read(path, with_tensors=True)
    what = f"The saved network {path} does not fit"
    remedy = f"Pass the network it was made from ({recipe.get('class')})"
    if isinstance(model, nn.Module):
        small = duplicate(model)
    else:
        small = model()
        if not isinstance(small, nn.Module):
            raise ArtifactError(what, f"the builder returned a {type(small).__name__}", "Return a torch.nn.Module")
    _remove(small, recipe.get("removed", {}), what, remedy)
    dense = skeleton(small)
    own = named_tensors(small)
    groups = _distinct(own)
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    used: set[str] = set()
    chosen: list[tuple[tuple[str, ...], Tensor, Tensor]] = []
    for names, current in groups:
        name = next((one for one in names if one in stored), None)
        if name is None:
            raise ArtifactError(what, f"it has no tensor {names[0]}", remedy)
        value = stored[name]
        used.update(one for one in names if one in stored)
        fits = value.ndim == current.ndim and all(
            0 < new <= old or new == old for new, old in zip(value.shape, current.shape, strict=True)
        )
        if not fits:
            raise ArtifactError(
                what,
                f"{name} has shape {tuple(value.shape)}, the network's is {tuple(current.shape)}",
                remedy,
            )
        if value.is_floating_point() != current.is_floating_point():
            raise ArtifactError(what, f"{name} holds {value.dtype}, the network's {current.dtype}", remedy)
        chosen.append((names, current, value))
    extra = sorted(set(stored) - used)
    if extra:
        raise ArtifactError(what, f"the network has no tensor {extra[0]}", remedy)
    for names, current, value in chosen:
        value = value.to(current.device)
        replacement = replacing(current, value)
        for one in names:
            put(small, one, replacement)
            shapes[one] = tuple(value.shape)
    kept = _kept_groups(dense, recipe.get("convolutions", {}), shapes, what, remedy)
    resize_attributes(small, dense, shapes, kept)
    _put_numbers(small, recipe.get("numbers", {}), what, remedy)
    small.__dict__[RECIPE] = {key: recipe[key] for key in _CARRIED if key in recipe}
    return small
