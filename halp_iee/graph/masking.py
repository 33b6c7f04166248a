"""Zero the units that are not kept, and put them back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from halp_iee.errors import GraphError


@contextlib.contextmanager
def zeroed(
    model: nn.Module,
    positions: Mapping[str, tuple[np.ndarray | None, ...]],
    full_shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[nn.Module]:
    """Zero every parameter entry at a removed position, on whichever axis; restore on leaving.

    The entries that were zeroed come back bit for bit, also after an error; the others
    are not touched, so what training changed of them stays.
    """
    undo: list[tuple[Tensor, int, Tensor, Tensor]] = []
    done: set[int] = set()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    try:
        with torch.no_grad():
            for name, kept in positions.items():
                parameter = parameters.get(name)
                if parameter is None or id(parameter) in done:
                    continue
                done.add(id(parameter))
                if tuple(parameter.shape) != full_shapes[name]:
                    raise GraphError(
                        "The network cannot be masked",
                        f"{name} has shape {tuple(parameter.shape)}, traced as {full_shapes[name]}",
                        "Pass a network of the traced sizes",
                    )
                for axis, live in enumerate(kept):
                    if live is None:
                        continue
                    dead = np.setdiff1d(np.arange(parameter.shape[axis]), live, assume_unique=True)
                    index = torch.as_tensor(dead, device=parameter.device)
                    undo.append((parameter, axis, index, parameter.detach().index_select(axis, index)))
                    parameter.index_fill_(axis, index, 0)
        yield model
    finally:
        with torch.no_grad():
            for parameter, axis, index, saved in reversed(undo):
                parameter.index_copy_(axis, index, saved)
