"""What a data set is to the training loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""Images [N, C, H, W] float32, normalised; labels [N] int64."""


class Split(Protocol):
    """Labelled images that can be gone through again and again in the same way."""

    def __len__(self) -> int: ...

    def batches(
        self,
        batch_size: int,
        *,
        epoch: int = 0,
        seed: int = 0,
        shuffle: bool = False,
        augment: bool = False,
        start_batch: int = 0,
        part: tuple[int, int] = (0, 1),
        only: np.ndarray | None = None,
    ) -> Iterator[Batch]:
        """The batches of one epoch from number `start_batch` on.

        Order and augmentation depend on (seed, epoch) and the image's index alone, never on a
        global generator or on where the iteration began, so that a run that was stopped goes on
        with the very images that it would have seen.

        Args:
            shuffle: a new order each epoch, the last incomplete batch left out (unless it is the
                only one); else the stored order, all images.
            part: (k, n): of every batch only the images k, k + n, k + 2n, ..., the share of one
                process of n.
            only: indices of the images that take part, in ascending order; None: all of them.
        """
        ...


@dataclass(frozen=True)
class Data:
    """A classification data set.

    Attributes:
        name: what the person asked for, e.g. `digits` or `cifar10:/data/cifar`.
        classes: their names.
        input_shape: of one image, (channels, height, width).
        train: for training alone.
        test: for evaluation alone; no image of it, nor of its making, is in `train`.
        note: what was decided for the person, e.g. how a folder was split; "" if nothing.
    """

    name: str
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    train: Split
    test: Split
    note: str = ""

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def fingerprint(self) -> str:
        """Tells data sets apart, by what can be known without reading every image."""
        shape = "x".join(map(str, self.input_shape))
        return f"{self.name} {len(self.train)}+{len(self.test)} {shape} {self.num_classes}"


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Batches of a shuffled epoch over `size` images."""
    return max(1, size // batch_size)


def batch_indices(
    size: int,
    batch_size: int,
    *,
    epoch: int,
    seed: int,
    shuffle: bool,
    start_batch: int,
    part: tuple[int, int] = (0, 1),
    only: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Indices of the images of every batch, as `Split.batches` describes."""
    size = size if only is None else len(only)
    if shuffle:
        order = np.random.default_rng([seed, epoch, 0]).permutation(size)
        count = steps_per_epoch(size, batch_size)
    else:
        order = np.arange(size)
        count = -(-size // batch_size)
    order = order if only is None else only[order]
    for number in range(start_batch, count):
        yield order[number * batch_size : (number + 1) * batch_size][part[0] :: part[1]]
