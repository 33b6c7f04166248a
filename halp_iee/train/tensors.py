"""A split that lies in memory, and the augmentations of small images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from halp_iee.train.records import Batch, batch_indices

Kind = Literal["none", "affine", "crop", "crop-flip"]
"""`affine`: a small rotation, scale and shift, for digits. `crop`: a shift by whole pixels of up to
an eighth of the image. `crop-flip`: that and a mirror image in half the cases, for CIFAR."""


class TensorSplit:
    """Images in memory.

    Args:
        images: [N, C, H, W], uint8 or float32.
        labels: [N] int64.
        mean: per channel, subtracted; of images scaled to [0, 1] where they are uint8.
        std: per channel, divided by.
        augmentation: what `augment=True` does.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
        augmentation: Kind = "none",
    ) -> None:
        self.images, self.labels, self.augmentation = images, labels, augmentation
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        self._mean = torch.tensor(mean).reshape(1, -1, 1, 1) * scale
        self._std = torch.tensor(std).reshape(1, -1, 1, 1) * scale

    def __len__(self) -> int:
        return len(self.labels)

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
        """See `Split.batches`."""
        # One row of draws for every image, whether this call comes to it or not: row i is the same
        # wherever in the epoch the iteration begins.
        draws = torch.from_numpy(np.random.default_rng([seed, epoch, 1]).random((len(self), 6), dtype=np.float32))
        for indices in batch_indices(
            len(self), batch_size, epoch=epoch, seed=seed, shuffle=shuffle, start_batch=start_batch, part=part,
            only=only,
        ):  # fmt: skip
            rows = torch.from_numpy(indices)
            images = (self.images[rows].float() - self._mean) / self._std
            if augment and self.augmentation != "none":
                images = _augmented(images, draws[rows], self.augmentation)
            yield images, self.labels[rows]


def _augmented(images: Tensor, draws: Tensor, kind: Kind) -> Tensor:
    """[N, C, H, W] changed by draws [N, 6] in [0, 1). What comes in from outside repeats the edge."""
    height, width = images.shape[-2:]
    centred = draws * 2 - 1
    if kind == "affine":
        angle = centred[:, 0] * (10 * torch.pi / 180)
        zoom = 1 + 0.1 * centred[:, 1]
        matrix = torch.stack(
            [
                zoom * torch.cos(angle), -zoom * torch.sin(angle), 0.125 * centred[:, 2],
                zoom * torch.sin(angle), zoom * torch.cos(angle), 0.125 * centred[:, 3],
            ], dim=1,
        ).reshape(-1, 2, 3)  # fmt: skip
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    far = (height // 8, width // 8)
    down = (draws[:, 2] * (2 * far[0] + 1)).long() - far[0]
    right = (draws[:, 3] * (2 * far[1] + 1)).long() - far[1]
    rows = (torch.arange(height) + down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width) + right[:, None]).clamp(0, width - 1)
    if kind == "crop-flip":
        columns = torch.where(draws[:, 4:5] < 0.5, columns.flip(1), columns)
    return images[torch.arange(len(images))[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )
