"""Folders of images, one folder a class, as ImageNet is laid out."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from halp_iee.errors import DataError
from halp_iee.train.records import Batch, Data, batch_indices

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as is usual for RGB photographs
_CHECK_ALL_UP_TO = 20_000  # opening a file costs about 0.1 ms; beyond this, at first touch
_WORKERS_FROM = 1000  # images; starting workers for fewer costs more than it saves


@dataclass(frozen=True)
class ImageFiles(Dataset[tuple[Tensor, int] | str]):
    """Decodes, crops and normalises one image, [3, size, size] float32.

    A file that cannot be read gives the reason as text, not an exception, which would lose its type
    on the way out of a worker process.
    """

    files: tuple[tuple[str, int], ...]
    size: int
    seed: int = 0
    epoch: int = 0
    augment: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | str:
        from PIL import Image

        path, label = self.files[index]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return f"{path}: {error}"
        rng = np.random.default_rng([self.seed, self.epoch, 1, index]) if self.augment else None
        box, mirror = _box(image.size, self.size, rng)
        small = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
        pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255.0
        pixels = (pixels - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None]
        return (pixels.flip(2) if mirror else pixels), label


def _box(
    image: tuple[int, int], size: int, rng: np.random.Generator | None
) -> tuple[tuple[float, float, float, float], bool]:
    """The part of the image (left, top, right, bottom) that becomes size x size, and whether it is mirrored.

    Without `rng` the central square of 7/8 of the shorter side (the usual 224 out of 256); with it
    8% to 100% of the area at an aspect of 3/4 to 4/3, anywhere.

    Source: random resized crop of Szegedy et al. 2015; where the draw does not fit it is clipped to
    the image rather than drawn again.
    """
    width, height = image
    if rng is None:
        side = min(width, height) * (7 / 8 if size > 64 else 1.0)
        left, top = (width - side) / 2, (height - side) / 2
        return (left, top, left + side, top + side), False
    area = width * height * rng.uniform(0.08, 1.0)
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    wide, high = min(width, float(np.sqrt(area * aspect))), min(height, float(np.sqrt(area / aspect)))
    left, top = rng.random() * (width - wide), rng.random() * (height - high)
    return (left, top, left + wide, top + high), bool(rng.random() < 0.5)


def _collate(items: list[Any]) -> Any:
    broken = [item for item in items if isinstance(item, str)]
    if broken:
        return broken[0]
    images, labels = zip(*items, strict=True)
    return torch.stack(images), torch.tensor(labels)


def _leave_ctrl_c_to_the_loop(worker: int) -> None:
    """A terminal sends the signal to workers too; one that died of it would take the step with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class FolderSplit:
    """Images in files. See `Split`."""

    def __init__(self, files: tuple[tuple[str, int], ...], size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

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
        """See `Split.batches`.

        Raises:
            DataError: an image cannot be read; names it.
        """
        order = batch_indices(
            len(self), batch_size, epoch=epoch, seed=seed, shuffle=shuffle, start_batch=start_batch, part=part,
            only=only,
        )  # fmt: skip
        workers = min(8, os.cpu_count() or 1) if len(self) >= _WORKERS_FROM else 0
        loader: DataLoader[Any] = DataLoader(
            ImageFiles(self.files, self.size, seed, epoch, augment),
            batch_sampler=[batch.tolist() for batch in order if len(batch)],
            num_workers=workers,
            collate_fn=_collate,
            generator=torch.Generator(),  # else it would draw from the global one
            worker_init_fn=_leave_ctrl_c_to_the_loop,
        )
        for batch in loader:
            if isinstance(batch, str):
                raise DataError("an image cannot be read", batch, "replace or remove the file")
            yield batch


def image_folder(name: str, folder: Path, size: int) -> Data:
    """`train/CLASS/*` with `val/CLASS/*` or `test/CLASS/*`, or `CLASS/*` alone.

    In the second form every tenth image of a class, in an order drawn once and for all, at least
    one, becomes the test set, and `note` says so.

    Raises:
        DataError: there are no class folders, one is empty, the classes of the two parts differ, or
            an image is broken (looked at here in sets of up to 20,000, else when its turn comes).
    """
    parts = [part for part in ("val", "test", "validation") if (folder / part).is_dir()]
    if (folder / "train").is_dir():
        if not parts:
            raise DataError(
                f"the data set {name!r} cannot be read", f"{folder} has train/ but neither val/ nor test/",
                "add val/ with the same class folders, or name the folder that holds the classes",
            )  # fmt: skip
        classes, train = _index(name, folder / "train")
        test_classes, test = _index(name, folder / parts[0])
        if classes != test_classes:
            odd = sorted(set(classes) ^ set(test_classes))
            raise DataError(
                f"the data set {name!r} cannot be read",
                f"the class {odd[0]!r} is in only one of train/ and {parts[0]}/",
                "give both the same class folders",
            )
        note = f"tested on {parts[0]}/"
    else:
        classes, every = _index(name, folder)
        train, test = _divided(name, every)
        note = f"{folder} has no train/ and val/: every tenth image of a class is for testing"
    if len(train) + len(test) <= _CHECK_ALL_UP_TO:
        _check(name, (*train, *test))
    return Data(name, classes, (3, size, size), FolderSplit(train, size), FolderSplit(test, size), note)


def _index(name: str, folder: Path) -> tuple[tuple[str, ...], tuple[tuple[str, int], ...]]:
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

    try:
        classes, numbers = find_classes(folder)
        files = make_dataset(folder, numbers, IMG_EXTENSIONS, allow_empty=True)
    except OSError as error:
        raise DataError(
            f"the data set {name!r} cannot be read", f"{folder} holds no class folders ({error.strerror or 'none'})",
            "lay it out as train/CLASS/IMAGE and val/CLASS/IMAGE, or as CLASS/IMAGE",
        ) from error  # fmt: skip
    empty = sorted(set(range(len(classes))) - {label for _, label in files})
    if empty:
        raise DataError(
            f"the data set {name!r} cannot be read", f"the class folder {folder / classes[empty[0]]} holds no image",
            f"remove it or fill it ({', '.join(IMG_EXTENSIONS)})",
        )  # fmt: skip
    if len(classes) < 2:
        raise DataError(
            f"the data set {name!r} cannot be read", f"{folder} holds one class, {classes[0]!r}",
            "classification needs at least two",
        )  # fmt: skip
    return tuple(classes), tuple(files)


def _divided(
    name: str, files: tuple[tuple[str, int], ...]
) -> tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]]:
    train: list[tuple[str, int]] = []
    test: list[tuple[str, int]] = []
    for label in sorted({label for _, label in files}):
        own = [file for file in files if file[1] == label]
        if len(own) < 2:
            raise DataError(
                f"the data set {name!r} cannot be divided", f"{Path(own[0][0]).parent} holds one image",
                "add images, or lay it out as train/ and val/",
            )  # fmt: skip
        order = np.random.default_rng([0, label]).permutation(len(own))
        held = max(1, len(own) // 10)
        test += [own[i] for i in sorted(order[:held])]
        train += [own[i] for i in sorted(order[held:])]
    return tuple(train), tuple(test)


def _ends_as_jpeg(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(-min(1024, os.path.getsize(path)), os.SEEK_END)
        return b"\xff\xd9" in file.read()


def _check(name: str, files: tuple[tuple[str, int], ...]) -> None:
    """Look at every image: its structure, and where that does not show whether it is whole, its pixels."""
    from PIL import Image

    for path, _ in files:
        try:
            with Image.open(path) as image:
                checked = image.format == "PNG" or (image.format == "JPEG" and _ends_as_jpeg(path))
                image.verify()
            if not checked:  # PNG has checksums, a whole JPEG its end marker; the others must be decoded
                with Image.open(path) as image:
                    image.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(
                f"the data set {name!r} holds a broken image",
                f"{path}: {error}",
                "replace or remove the file",
            ) from error
