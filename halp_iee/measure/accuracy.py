"""Accuracy as deployed: what the file answers in the runtime, not what the network answered in training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from halp_iee.errors import DataError, UsageError
from halp_iee.measure.engine import Engine, bind, fixed_batch
from halp_iee.measure.runtime import OnnxEngine


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers.

    Attributes:
        top1: between 0 and 1.
        correct, total: of how many images.
    """

    top1: float
    correct: int
    total: int


def top1_onnx(
    file: str | os.PathLike[str] | bytes,
    batches: Iterable[tuple[Any, Any]],
    *,
    threads: int = 1,
    output: str | None = None,
    provider: str = "CPUExecutionProvider",
    progress: Callable[[int], None] | None = None,
) -> Accuracy:
    """Top-1 accuracy of an ONNX classifier in ONNX Runtime; see ``top1``.

    Raises:
        ArtifactError, DeviceError: the file or the runtime is not usable.
        DataError, UsageError: as ``top1``.
    """
    source = file if isinstance(file, bytes) else os.fspath(file)
    engine = OnnxEngine.load(source, threads=threads, provider=provider)
    return top1(engine, batches, output=output, progress=progress)


def top1(
    engine: Engine,
    batches: Iterable[tuple[Any, Any]],
    *,
    output: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Accuracy:
    """Top-1 accuracy of a classifier, in whichever runtime.

    Args:
        engine: takes one input, images first. With a fixed batch, batches of any size are cut and the last
            piece is filled up (what is filled in is not counted).
        batches: (images of shape (N, ...), labels of shape (N,)) as arrays or CPU tensors.
        output: name of the output with the scores, shape (N, classes); the first when not given.
        progress: called with the number of images done.

    Raises:
        DataError: there is no image, or images and labels differ in number.
        UsageError: the network takes several inputs, has no such output, or other scores.
    """
    specs = engine.inputs
    if len(specs) != 1:
        raise UsageError(
            "Cannot measure accuracy",
            f"the model takes {len(specs)} inputs",
            "Give a classifier with the images as its one input",
        )
    names = [spec.name for spec in engine.outputs]
    wanted = output or names[0]
    if wanted not in names:
        raise UsageError("Cannot measure accuracy", f"there is no output {wanted!r}", f"Choose of {', '.join(names)}")
    at, fixed = names.index(wanted), fixed_batch(engine)

    correct = total = 0
    for images, labels in batches:
        pixels, answers = np.asarray(images), np.asarray(labels)
        if len(pixels) != len(answers):
            raise DataError(
                "Cannot measure accuracy",
                f"a batch has {len(pixels)} images and {len(answers)} labels",
                "Give one label an image",
            )
        for start in range(0, len(pixels), fixed or max(1, len(pixels))):
            stop = min(len(pixels), start + (fixed or len(pixels)))
            piece = pixels[start:stop]
            missing = (fixed or len(piece)) - len(piece)
            if missing:
                piece = np.concatenate([piece, np.repeat(piece[-1:], missing, axis=0)])
            scores = engine.run(bind(specs, piece))[at]
            if scores.ndim != 2:
                raise UsageError(
                    "Cannot measure accuracy",
                    f"output {wanted!r} has shape {scores.shape}, not (images, classes)",
                    "Name the output that holds the class scores",
                )
            correct += int((scores[: stop - start].argmax(axis=1) == answers[start:stop]).sum())
            total += stop - start
            if progress is not None:
                progress(total)
    if total == 0:
        raise DataError("Cannot measure accuracy", "there is no image", "Give at least one batch")
    return Accuracy(top1=correct / total, correct=correct, total=total)
