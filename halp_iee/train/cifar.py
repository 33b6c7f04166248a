"""CIFAR-10 and CIFAR-100, from their binary version or their Python version.

The files of the Python version are pickles. They are not unpickled, which would run whatever code
they ask for: their opcodes are listed, and the images and labels, which lie in them as plain
operands, are taken from the list.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from halp_iee.errors import DataError
from halp_iee.train.records import Data
from halp_iee.train.tensors import TensorSplit

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Version:
    """Where one version of a data set keeps what."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    classes: str
    label: str = ""  # Python version: the entry with the labels
    label_bytes: int = 0  # binary version: bytes before the pixels, of which the last is the label


_VERSIONS = {
    "cifar10": (
        _Version(
            "cifar-10-batches-bin", tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",),
            "batches.meta.txt", label_bytes=1,
        ),
        _Version(
            "cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",),
            "", label="labels",
        ),
    ),
    "cifar100": (
        _Version("cifar-100-binary", ("train.bin",), ("test.bin",), "fine_label_names.txt", label_bytes=2),
        _Version("cifar-100-python", ("train",), ("test",), "", label="fine_labels"),
    ),
}  # fmt: skip

# Means and deviations over the training images, per colour, of pixels in [0, 1].
_SCALES = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def cifar(name: str, folder: Path, kind: str) -> Data:
    """Read all images into memory, as uint8.

    Args:
        name: as the person wrote it.
        folder: that of the files, or the one above it.
        kind: `cifar10` or `cifar100`.

    Raises:
        DataError: files are missing or broken.
    """
    place, version = _find(name, folder, kind)
    count = 10 if kind == "cifar10" else 100
    train = _read(name, [place / file for file in version.train], version, count)
    test = _read(name, [place / file for file in version.test], version, count)
    mean, std = _SCALES[kind]
    return Data(
        name=name,
        classes=_class_names(place, version, count),
        input_shape=(3, 32, 32),
        train=TensorSplit(*train, mean, std, "crop-flip"),
        test=TensorSplit(*test, mean, std),
    )


def _find(name: str, folder: Path, kind: str) -> tuple[Path, _Version]:
    versions = _VERSIONS[kind]
    for version in versions:
        for place in (folder, folder / version.folder):
            if (place / version.train[0]).is_file():
                return place, version
    raise DataError(
        f"the data set {name!r} cannot be read",
        f"{folder} holds neither " + " nor ".join(f"{v.folder}/{v.train[0]}" for v in versions),
        "unpack the archive of https://www.cs.toronto.edu/~kriz/cifar.html there",
    )


def _read(name: str, files: list[Path], version: _Version, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    pixels, labels = [], []
    for file in files:
        try:
            raw = file.read_bytes()
            some_pixels, some_labels = _binary(raw, version) if version.label_bytes else _pickled(raw, version)
        except OSError as error:
            raise _broken(name, file, error.strerror or str(error)) from error
        except ValueError as error:
            raise _broken(name, file, str(error)) from error
        if some_labels.size and int(some_labels.max()) >= count:
            raise _broken(name, file, f"it has the label {int(some_labels.max())}, and there are {count} classes")
        pixels.append(some_pixels)
        labels.append(some_labels)
    images = torch.from_numpy(np.concatenate(pixels).reshape(-1, 3, 32, 32).copy())
    return images, torch.from_numpy(np.concatenate(labels).astype(np.int64))


def _binary(raw: bytes, version: _Version) -> tuple[np.ndarray, np.ndarray]:
    record = version.label_bytes + _PIXELS
    if not raw or len(raw) % record:
        raise ValueError(f"{len(raw)} bytes are not a whole number of records of {record}")
    rows = np.frombuffer(raw, np.uint8).reshape(-1, record)
    return rows[:, version.label_bytes :], rows[:, version.label_bytes - 1]


def _pickled(raw: bytes, version: _Version) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [N, 3072] and labels [N] out of the opcodes of a pickle that is not run.

    The pixels are its longest string; the labels are the run of integers that follows the key.
    """
    pixels, labels, reading = b"", [], False
    by_columns = flag = False
    for opcode, argument, _ in pickletools.genops(raw):
        if isinstance(argument, (str, bytes)) and "PUT" not in opcode.name and "GLOBAL" not in opcode.name:
            if len(argument) > len(pixels):
                pixels = argument.encode("latin-1", "replace") if isinstance(argument, str) else argument
                by_columns = flag
            key = argument if isinstance(argument, str) else argument.decode("latin-1")
            reading = key == version.label
        elif opcode.name in ("NEWTRUE", "NEWFALSE"):
            flag = opcode.name == "NEWTRUE"  # what comes before an array's bytes: whether it lies by columns
        elif reading and opcode.name in ("BININT", "BININT1", "BININT2", "INT"):
            labels.append(int(argument or 0))
    if not labels or len(pixels) != len(labels) * _PIXELS or min(labels) < 0:
        raise ValueError(f"{len(labels)} labels and {len(pixels)} bytes of pixels do not belong together")
    rows = np.frombuffer(pixels, np.uint8)
    rows = rows.reshape(_PIXELS, -1).T if by_columns else rows.reshape(-1, _PIXELS)
    return rows, np.array(labels)


def _class_names(place: Path, version: _Version, count: int) -> tuple[str, ...]:
    try:
        names = tuple((place / version.classes).read_text(encoding="utf-8").split()) if version.classes else ()
    except (OSError, UnicodeDecodeError):
        names = ()
    return names if len(names) == count else tuple(str(i) for i in range(count))


def _broken(name: str, file: Path, why: str) -> DataError:
    return DataError(f"the data set {name!r} cannot be read", f"{file}: {why}", "unpack the archive again")
