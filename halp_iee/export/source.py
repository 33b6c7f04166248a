"""What an export starts from: the slim network of a run, its data, and how it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from halp_iee.errors import UsageError
from halp_iee.export import parity
from halp_iee.export.call import Call, as_call
from halp_iee.export.onnx import evaluation_copy
from halp_iee.run.directory import RunDirectory

if TYPE_CHECKING:
    from halp_iee.train.records import Data

Format = Literal["onnx", "openvino", "tensorrt", "torch-export", "safetensors"]
Precision = Literal["fp32", "fp16", "int8"]
SUFFIX: dict[Format, str] = {
    "onnx": ".onnx", "openvino": ".xml", "tensorrt": ".engine", "torch-export": ".pt2", "safetensors": ".safetensors",
}  # fmt: skip
PRECISIONS: dict[Format, tuple[Precision, ...]] = {
    "onnx": ("fp32", "fp16", "int8"), "openvino": ("fp32", "fp16", "int8"), "tensorrt": ("fp32", "fp16", "int8"),
    "torch-export": ("fp32", "fp16"), "safetensors": ("fp32",),
}  # fmt: skip
MAX_DROP: dict[Precision, float] = {"fp32": 0.002, "fp16": 0.005, "int8": 0.01}
"""How much top-1 an export may lose against the slim network, as a share, when nothing else is said."""
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2}
_ACCURACY_MACS: dict[Precision, float] = {"fp32": 2e11, "fp16": 4e11, "int8": 4e11}
_LEAST_IMAGES: dict[Precision, int] = {"fp32": 100, "fp16": 250, "int8": 250}
"""Fewer where every output has been compared to 1e-4 besides; rounded arithmetic is judged by its accuracy alone."""
_MOST_IMAGES = 5000
_CHECKS = 4  # batches of real images on which every output is compared
_OPSETS = (13, 26)


@dataclass(frozen=True)
class Options:
    """How a network is exported.

    Attributes:
        format: of the file.
        precision: ``fp16``: weights and arithmetic in half precision, inputs and outputs stay in single (OpenVINO:
            the weights alone); ``int8``: quantised with calibration on real images.
        dynamic_batch: leave the batch open; else it is the run's.
        opset: version of the standard ONNX operators.
        max_drop: loss of top-1 that is accepted; that of ``MAX_DROP`` when None.
        calibration: inputs for int8 where the run has no data, as the network takes them.
        calibration_images: how many images of the training set calibrate int8.
        test_images: how many images of the test set are compared, spread evenly over it; when None, as many as take
            the network 400 GMACs, 250 at least (in single precision 200 GMACs and 100) and 5000 at most.
    """

    format: Format = "onnx"
    precision: Precision = "fp32"
    dynamic_batch: bool = False
    opset: int = 18
    max_drop: float | None = None
    calibration: np.ndarray | None = None
    calibration_images: int = 256
    test_images: int | None = None

    @property
    def drop(self) -> float:
        return MAX_DROP[self.precision] if self.max_drop is None else self.max_drop

    def check(self) -> None:
        """Raises UsageError where the options do not go together."""
        if self.precision not in PRECISIONS[self.format]:
            raise UsageError(
                f"{self.format} cannot be exported as {self.precision}",
                f"it is made in {', '.join(PRECISIONS[self.format])}", "choose one of these, or --format onnx",
            )  # fmt: skip
        if not _OPSETS[0] <= self.opset <= _OPSETS[1]:
            raise UsageError(f"no opset {self.opset}", f"there are {_OPSETS[0]} to {_OPSETS[1]}", "18 is a good choice")


@dataclass(frozen=True)
class Source:
    """The slim network, examples of its input, and its data."""

    model: nn.Module
    example: torch.Tensor
    data: Data | None
    result: Mapping[str, Any]
    options: Options
    metadata: Mapping[str, str]
    run: RunDirectory

    @property
    def checks(self) -> list[torch.Tensor]:
        """Real images in batches of the example's size."""
        if self.data is None:
            return []
        found = []
        for images, _ in self.data.test.batches(len(self.example)):
            if len(images) == len(self.example):
                found.append(images)
            if len(found) == _CHECKS:
                break
        return found

    def calls(self) -> list[Call]:
        call = as_call(self.model, self.example)
        given = [as_call(self.model, images) for images in self.checks]
        return parity.calls_to_check(call, given, self.options.dynamic_batch)

    def test_batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        assert self.data is not None, "asked for with data only"
        total, wanted = len(self.data.test), self.options.test_images
        if wanted is None:
            precision, macs = self.options.precision, max(1.0, float(self.result.get("macs") or 0.0))
            wanted = int(np.clip(_ACCURACY_MACS[precision] / macs, _LEAST_IMAGES[precision], _MOST_IMAGES))
        # Spread evenly: the files of a folder are ordered by their class.
        only = None if wanted >= total else np.unique(np.linspace(0, total - 1, wanted).round().astype(np.int64))
        yield from self.data.test.batches(250, only=only)


def source_of(run: RunDirectory, result: Mapping[str, Any], options: Options) -> Source:
    from halp_iee.run.reload import slim_network

    model, example = slim_network(run, dict(result))
    data = None
    if result["data"] is not None:
        from halp_iee.train.data import load

        data = load(result["data"], image_size=int(result["input_shape"][-1]))
        example = next(iter(data.test.batches(len(example))))[0] if len(data.test) >= len(example) else example
    keys = ("version", "model", "data", "target", "method", "seed", "device", "runtime", "measured_ms", "top1")
    metadata = {f"halp_iee.{key}": str(result[key]) for key in keys if result.get(key) is not None}
    metadata |= {"halp_iee.precision": options.precision}
    return Source(evaluation_copy(model), example, data, result, options, metadata, run)


def calibration(source: Source) -> np.ndarray:
    options = source.options
    if options.calibration is not None:
        given = np.asarray(options.calibration, dtype=np.float32)
        if given.ndim != source.example.dim() or given.shape[1:] != tuple(source.example.shape[1:]) or not len(given):
            raise UsageError(
                "the calibration inputs do not fit", f"they are {given.shape}, the network takes "
                f"(N, {', '.join(map(str, source.example.shape[1:]))})", "give them as the network takes them",
            )  # fmt: skip
        return given
    if source.data is None:
        raise UsageError(
            "cannot quantise to int8", "the run has no data, and ranges must be found on real inputs",
            "give --calibration FILE.npy with some hundred of them",
        )  # fmt: skip
    found: list[np.ndarray] = []
    for images, _ in source.data.train.batches(64, shuffle=True, seed=int(source.result["seed"])):
        found.append(images.numpy())
        if sum(map(len, found)) >= options.calibration_images:
            break
    return np.concatenate(found)[: options.calibration_images]
