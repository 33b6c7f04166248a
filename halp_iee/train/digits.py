"""Real handwritten digits that come with scikit-learn, as they are and made hard."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from halp_iee.train.records import Data
from halp_iee.train.tensors import TensorSplit

_CLASSES = tuple(str(digit) for digit in range(10))
_SIZE = 32


def _originals() -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """Images [1797, 1, 8, 8] in [0, 1], labels [1797], and the indices of both splits.

    The split is the same for every seed: 500 test images, each digit in proportion.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.float32)).unsqueeze(1) / 16.0
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    train, test = train_test_split(np.arange(len(labels)), test_size=500, stratify=bunch.target, random_state=0)
    return images, labels, np.sort(train), np.sort(test)


def _enlarged(images: Tensor, size: int) -> Tensor:
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def digits() -> Data:
    """The 1797 digits, 8x8 enlarged to 32x32: 1297 to train on, 500 to test on."""
    images, labels, train, test = _originals()
    large = _enlarged(images, _SIZE)
    mean, std = (float(large[train].mean()),), (float(large[train].std()),)
    return Data(
        name="digits",
        classes=_CLASSES,
        input_shape=(1, _SIZE, _SIZE),
        train=TensorSplit(large[train], labels[train], mean, std, "affine"),
        test=TensorSplit(large[test], labels[test], mean, std),
    )


def digits_hard(seed: int = 0, train_size: int = 8000, test_size: int = 2000) -> Data:
    """The same digits warped, scaled and cluttered with parts of other digits, and noise.

    Training images are made of the 1297 training digits alone, clutter included, and test images of
    the 500 others, so nothing of a test image has been seen. Made anew at every call, in seconds.

    Args:
        seed: same seed, same images.
        train_size: images to train on.
        test_size: images to test on.
    """
    images, labels, train, test = _originals()
    made = {}
    for number, (name, rows, size) in enumerate((("train", train, train_size), ("test", test, test_size))):
        rng = np.random.default_rng([seed, number])
        made[name] = _make(images[rows], labels[rows], size, rng)
    mean, std = (float(made["train"][0].mean()),), (float(made["train"][0].std()),)
    return Data(
        name="digits-hard" if seed == 0 else f"digits-hard (seed {seed})",
        classes=_CLASSES,
        input_shape=(1, _SIZE, _SIZE),
        train=TensorSplit(*made["train"], mean, std, "crop"),
        test=TensorSplit(*made["test"], mean, std),
    )


def _make(images: Tensor, labels: Tensor, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """`size` cluttered images [size, 1, 32, 32] out of originals, every original used equally often."""
    chosen = rng.permutation(np.resize(rng.permutation(len(labels)), size))
    scene = _warped(images[chosen], rng, size_range=(0.65, 1.05), shift=0.25, turn=25)
    brightness = torch.from_numpy(rng.uniform(0.55, 1.0, (size, 1, 1, 1)).astype(np.float32))
    scene = scene * brightness
    for _ in range(3):
        others = rng.integers(len(labels), size=size)
        part = _warped(images[others], rng, size_range=(0.5, 0.9), shift=0.7, turn=180)
        scene = torch.maximum(scene, 0.8 * brightness * part * _windows(size, rng))
    background = _smooth_noise(size, 4, rng) * 0.15
    noise = torch.from_numpy(rng.standard_normal((size, 1, _SIZE, _SIZE), dtype=np.float32)) * 0.1
    return scene + background + noise, labels[chosen]


def _warped(
    images: Tensor, rng: np.random.Generator, size_range: tuple[float, float], shift: float, turn: float
) -> Tensor:
    """Each image under a random affine map and a smooth elastic one, on a black ground, [N, 1, 32, 32].

    Args:
        size_range: side of the digit as a share of the image's.
        shift: largest move of its centre, in half-widths of the image.
        turn: largest rotation in degrees.
    """
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, count).astype(np.float32))

    angle = uniform(-turn, turn) * (torch.pi / 180)
    across, along = 1 / uniform(*size_range), 1 / uniform(*size_range)
    slant = uniform(-0.3, 0.3)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # Output to input: the inverse of scale, then slant, then turn.
    linear = torch.stack(
        [across * (cos + slant * sin), across * (slant * cos - sin), along * sin, along * cos], dim=1
    ).reshape(-1, 2, 2)
    centre = torch.stack([uniform(-shift, shift), uniform(-shift, shift)], dim=1)
    matrix = torch.cat([linear, -(linear @ centre.unsqueeze(-1))], dim=2)
    grid = F.affine_grid(matrix, [count, 1, _SIZE, _SIZE], align_corners=False)
    bend = torch.cat([_smooth_noise(count, 5, rng), _smooth_noise(count, 5, rng)], dim=1)
    grid = grid + 0.08 * bend.permute(0, 2, 3, 1)
    return F.grid_sample(_enlarged(images, _SIZE), grid, padding_mode="zeros", align_corners=False)


def _smooth_noise(count: int, knots: int, rng: np.random.Generator) -> Tensor:
    """[count, 1, 32, 32]: normal draws on a knots x knots grid, joined smoothly."""
    coarse = torch.from_numpy(rng.standard_normal((count, 1, knots, knots), dtype=np.float32))
    return F.interpolate(coarse, size=(_SIZE, _SIZE), mode="bicubic", align_corners=True)


def _windows(count: int, rng: np.random.Generator) -> Tensor:
    """[count, 1, 32, 32]: ones in a random box of 6 to 12 pixels a side, zeros outside."""
    side = rng.integers(6, 13, (count, 2))
    start = (rng.random((count, 2)) * (_SIZE - side + 1)).astype(np.int64)
    line = np.arange(_SIZE)
    inside = (line >= start[..., None]) & (line < (start + side)[..., None])
    return torch.from_numpy((inside[:, 0, :, None] & inside[:, 1, None, :])[:, None].astype(np.float32))
