"""Networks as OpenVINO's IR, made from an ONNX file that has passed the gate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from halp_iee.errors import GraphError
from halp_iee.measure.openvino import first_line, require_openvino


def write_ir(onnx: Path, path: Path, *, metadata: Mapping[str, str], half_weights: bool = False) -> tuple[Path, Path]:
    """Convert an ONNX file; ``path`` ends in .xml, its weights come beside it as .bin.

    Args:
        onnx: the file.
        path: of the IR.
        metadata: provenance, kept in the IR's ``rt_info``.
        half_weights: store the weights in half precision, as OpenVINO's own converter does by default.

    Returns:
        Both files.

    Raises:
        DeviceError: OpenVINO is not there.
        GraphError: it cannot convert the network.
    """
    ov = require_openvino()
    try:
        model = ov.convert_model(str(onnx))
        for key, text in metadata.items():
            model.set_rt_info(str(text), key.split("."))
        ov.save_model(model, str(path), compress_to_fp16=half_weights)
    except Exception as error:  # OpenVINO raises plain RuntimeErrors
        raise GraphError(
            "Cannot export the network to OpenVINO", first_line(error), "Export to ONNX, which OpenVINO runs as well"
        ) from error
    return path, path.with_suffix(".bin")
