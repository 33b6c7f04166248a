"""The global random generators, which networks draw from: owned by a run while it lasts, saved and restored."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of torch's, numpy's and Python's generators, as tensors and as what JSON can hold."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        tensors |= {f"cuda{i}": value for i, value in enumerate(torch.cuda.get_rng_state_all())}
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    tensors["numpy"] = torch.from_numpy(np.asarray(keys, dtype=np.uint32).astype(np.int64))
    version, words, gauss_next = random.getstate()
    tensors["python"] = torch.tensor(words, dtype=torch.int64)
    return tensors, {
        "numpy": [int(position), int(has_gauss), float(gauss)],
        "python": [version, gauss_next],
    }


def restore(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Inverse of `state`."""
    torch.set_rng_state(tensors["torch"].cpu())
    cuda = [tensors[f"cuda{i}"].cpu() for i in range(len(tensors)) if f"cuda{i}" in tensors]
    if cuda and torch.cuda.is_available() and torch.cuda.device_count() == len(cuda):
        torch.cuda.set_rng_state_all(cuda)
    position, has_gauss, gauss = meta["numpy"]
    np.random.set_state(("MT19937", tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    version, gauss_next = meta["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss_next))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all generators inside, and give the caller's back afterwards."""
    before = state()
    try:
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield
    finally:
        restore(*before)
