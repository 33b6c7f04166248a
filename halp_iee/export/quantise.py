"""Static 8-bit quantisation on top of the pruning, by ONNX Runtime: Q/DQ nodes, calibrated on real images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from halp_iee.errors import GraphError
from halp_iee.export.onnx import quiet, root_cause
from halp_iee.measure.engine import Engine, bind, fixed_batch
from halp_iee.measure.runtime import OnnxEngine

METHODS = ("minmax", "percentile")
"""How ranges are found: by the extremes seen, or without the outermost 0.01% of values."""
HELD_BYTES = 2 << 30
"""For percentiles ONNX Runtime holds every activation of every image at once: as many images are taken as fit."""
_LEAST_IMAGES = 8


def quantise(
    single: Path, path: Path, images: np.ndarray, *, metadata: Mapping[str, str], methods: Sequence[str] = METHODS
) -> str:
    """Write ``single`` in 8 bits: weights signed and by channel, activations unsigned and by tensor.

    Every method of calibration is tried, and the one stays whose network most often gives the same class as ``single``
    on the calibration images; no test image is looked at.

    Args:
        single: ONNX file in single precision with one input.
        path: where to write.
        images: for calibration, as the network takes them, shape (N, ...), N of some hundred.
        metadata: provenance.
        methods: of ``METHODS``.

    Returns:
        The method that stayed.

    Raises:
        GraphError: ONNX Runtime cannot quantise the network.
    """
    before = OnnxEngine.load(single)
    best, kept, seen = -1.0, methods[0], 0
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for method in methods:
            tried = Path(folder) / f"{method}.onnx"
            some = images[: _most_images(single, images)] if method == "percentile" else images
            _quantise(single, tried, some, method, before)
            same = agreement(before, OnnxEngine.load(tried), images)
            if same > best:
                best, kept, seen = same, method, len(some)
            if best >= 0.999:
                break
        model = onnx.load(str(Path(folder) / f"{kept}.onnx"))
    del model.metadata_props[:]
    for key, text in {**metadata, "halp_iee.calibration": f"{kept} over {seen} inputs"}.items():
        model.metadata_props.add(key=key, value=str(text))
    model.producer_name = "halp-iee"
    onnx.save(model, str(path))
    return kept


def _most_images(single: Path, images: np.ndarray) -> int:
    """How many images' activations fit ``HELD_BYTES``."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(single))).graph
    each = sum(4 * int(np.prod([size.dim_value or 1 for size in value.type.tensor_type.shape.dim]))
               for value in graph.value_info)  # fmt: skip
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    return min(len(images), max(_LEAST_IMAGES, HELD_BYTES * batch // max(1, each)))


def agreement(one: Engine, other: Engine, images: np.ndarray) -> float:
    """Share of places (images, or pixels of them) at which both find the same of the classes on axis 1."""
    same = total = 0
    for (a,), (b,) in zip(_answers(one, images), _answers(other, images), strict=True):
        same += int((a.argmax(1) == b.argmax(1)).sum())
        total += int(np.prod(a.argmax(1).shape))
    return same / max(1, total)


def _answers(engine: Engine, images: np.ndarray) -> Iterator[list[np.ndarray]]:
    for feeds in _feeds(engine, images):
        yield engine.run(feeds)[:1]


def _feeds(engine: Engine, images: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """All images in whole batches of the network's size; a last piece that does not fill one is filled up."""
    size = fixed_batch(engine) or 1
    for start in range(0, len(images), size):
        piece = images[start : start + size]
        if len(piece) < size:
            piece = np.concatenate([piece, np.repeat(piece[-1:], size - len(piece), axis=0)])
        yield bind(engine.inputs, piece)


def _quantise(single: Path, path: Path, images: np.ndarray, method: str, engine: Engine) -> None:
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = _feeds(engine, images)

        def get_next(self) -> Any:
            return next(self.feeds, None)

    kinds = {"minmax": q.CalibrationMethod.MinMax, "percentile": q.CalibrationMethod.Percentile}
    options = {"CalibPercentile": 99.99} if method == "percentile" else {}
    try:
        with quiet():
            q.quantize_static(
                str(single), str(path), Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
                activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
                calibrate_method=kinds[method], extra_options=options,
            )  # fmt: skip
    except Exception as error:  # of the quantiser, of any kind
        raise GraphError(
            "Cannot quantise the network", root_cause(error), "Export it in single or half precision"
        ) from error
