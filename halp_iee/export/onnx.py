"""A network as an ONNX file that was proved to compute what the network computes, or no file at all."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from halp_iee.errors import ArtifactError, GraphError, HalpError, ParityError
from halp_iee.export import parity
from halp_iee.export.call import Call, as_call, at_least_two
from halp_iee.graph.copies import duplicate
from halp_iee.measure import runtime
from halp_profiler.files import whole

# A protobuf file cannot hold more; larger networks need their weights beside it.
_PROTOBUF_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class OnnxExport:
    """What was written, and how well it agrees.

    Attributes:
        path: the file.
        bytes: its size.
        opset: version of the standard ONNX operators that it uses.
        max_error: largest disagreement with torch, relative to each output's scale, over all checks.
        tolerance: what would have been accepted.
        checks: number of input sets on which the two were compared.
        inputs: (name, shape) of each input, an open axis as a string.
        outputs: names of the outputs, in the order in which the network returns its tensors.
        dynamic_batch: whether any batch may be fed.
        responds: whether its outputs depend on its inputs at all; where not, the agreement means little.
    """

    path: Path
    bytes: int
    opset: int
    max_error: float
    tolerance: float
    checks: int
    inputs: tuple[tuple[str, tuple[int | str, ...]], ...]
    outputs: tuple[str, ...]
    dynamic_batch: bool
    responds: bool = True


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    check_inputs: Sequence[Any] | None = None,
    dynamic_batch: bool = False,
    opset: int = 18,
    tolerance: float | None = None,
) -> OnnxExport:
    """Write ``model`` as ONNX if and only if ONNX Runtime computes the same from it.

    The network is exported in evaluation mode, on the CPU, weights inside the file, constants folded
    (BatchNorm goes into the convolution before it). What the exporter notes about every node (source
    lines, local paths) is left out. The file is run in ONNX Runtime on the example, on random inputs and
    on ``check_inputs``; every output must agree with torch:
    ``max |onnx - torch| / max |torch| <= tolerance``. Only then does the file appear, at once and whole.

    Args:
        model: any module; it is not changed (a copy is exported).
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
        path: file to write; its folder must exist.
        metadata: provenance, kept in the file as text properties.
        check_inputs: further inputs for the comparison, real data if possible, each in the form of
            ``example_inputs``.
        dynamic_batch: leave the first axis of every input open. Otherwise the example's shapes
            are fixed.
        opset: version of the standard operators.
        tolerance: accepted relative error; 1e-4 for single precision when not given, 2e-2 for half.

    Raises:
        ArtifactError: the folder is missing or cannot be written.
        DeviceError: ONNX Runtime is not there.
        GraphError: the exporter cannot express the network.
        ParityError: the two disagree; nothing was written.
    """
    target = writable(path)
    runtime.require_onnxruntime()
    copied = evaluation_copy(model)
    example = as_call(copied, example_inputs)
    checks = [as_call(copied, one) for one in check_inputs or ()]
    if dynamic_batch:
        example = at_least_two(example)

    names = parity.output_names(parity.run_torch(copied, example))
    payload = _to_onnx(copied, example, dict(metadata or {}), names, opset, dynamic_batch)
    if tolerance is None:
        tolerance = parity.default_tolerance([*copied.parameters(), *example.tensors()])
    calls = parity.calls_to_check(example, checks, dynamic_batch)
    engine = _engine(payload)
    max_error = parity.prove(copied, engine, calls, tolerance)
    _write(target, payload)
    return OnnxExport(
        path=target,
        bytes=len(payload),
        opset=opset,
        max_error=max_error,
        tolerance=tolerance,
        checks=len(calls),
        inputs=tuple((spec.name, tuple(spec.shape)) for spec in engine.session.get_inputs()),
        outputs=tuple(spec.name for spec in engine.outputs),
        dynamic_batch=dynamic_batch,
        responds=parity.responds(copied, calls),
    )


def evaluation_copy(model: nn.Module) -> nn.Module:
    """The network on the CPU in evaluation mode; the one given stays as it is.

    Raises:
        GraphError: it cannot be copied.
    """
    try:
        copied = duplicate(model)
    except Exception as error:
        raise GraphError(
            "Cannot export the network",
            f"it cannot be copied: {_first_line(error)}",
            "Give the class that is named a __deepcopy__, or remove it from the network's attributes",
        ) from error
    return copied.cpu().eval()


def _to_onnx(
    model: nn.Module, call: Call, metadata: dict[str, str], names: list[str], opset: int, dynamic_batch: bool
) -> bytes:
    shapes = None
    if dynamic_batch:
        batch = torch.export.Dim("batch", min=1)
        shapes = pytree.tree_map(
            lambda leaf: {0: batch} if isinstance(leaf, torch.Tensor) and leaf.dim() else None,
            {**dict(zip(positional_names(model, len(call.args)), call.args, strict=True)), **call.kwargs},
        )
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                call.args,
                kwargs=call.kwargs or None,
                dynamo=True,
                optimize=True,
                opset_version=opset,
                external_data=False,
                dynamic_shapes=shapes,
                verbose=False,
            )
            assert program is not None, "without a file name the exporter returns the program"
            _strip(program.model, metadata)
            _name_outputs(program.model.graph, names)
            proto = program.model_proto
            size = proto.ByteSize()
            if 0 <= size <= _PROTOBUF_LIMIT:
                return bytes(proto.SerializeToString())
    except Exception as error:
        raise GraphError(
            "Cannot export the network to ONNX",
            root_cause(error),
            "Change the operation named" + (", or export with a fixed batch" if dynamic_batch else ""),
        ) from error
    raise GraphError(
        "Cannot export the network to ONNX",
        "its weights do not fit one file of 2 GB",
        "Slim it further, or convert it to half precision first",
    )


def positional_names(model: nn.Module, count: int) -> list[str]:
    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < count:
        raise ValueError("a dynamic batch needs a forward() whose arguments have names, not *args")
    return positional[:count]


def _strip(model: Any, metadata: dict[str, str]) -> None:
    """Drop the exporter's notes (stack traces with local paths among them) and put in the provenance."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        graph.doc_string = None
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
        values = [*graph.inputs, *graph.initializers.values()]
        for value in (*values, *(output for node in graph.all_nodes() for output in node.outputs)):
            value.metadata_props.clear()
            value.doc_string = None
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    for key, text in metadata.items():
        model.metadata_props[str(key)] = str(text)
    model.producer_name = "halp-iee"
    model.producer_version = None


def _name_outputs(graph: Any, names: list[str]) -> None:
    """``logits`` rather than ``linear_48``: whoever deploys the file asks for outputs by name."""
    if len(names) != len(graph.outputs) or len({id(value) for value in graph.outputs}) != len(names):
        return  # the gate compares the number; one value returned twice keeps its name
    taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    taken |= {value.name for node in graph.all_nodes() for value in node.outputs}
    for value, name in zip(graph.outputs, names, strict=True):
        if name not in taken and not value.is_graph_input() and not value.is_initializer():
            value.name = name


def _engine(payload: bytes) -> runtime.OnnxEngine:
    try:
        return runtime.OnnxEngine.load(payload)
    except ArtifactError as error:
        raise ParityError(
            "The ONNX export was refused",
            error.why,
            "Nothing was written; try another opset, or report the network",
        ) from error


def writable(path: str | os.PathLike[str]) -> Path:
    """Find out before the work, not after it, whether the file can be put there."""
    target = Path(path)
    folder = target.parent
    if target.is_dir():
        raise ArtifactError(f"Cannot write {target}", "it is a folder", "Give the name of a file in it")
    if not folder.is_dir():
        raise ArtifactError(f"Cannot write {target}", f"the folder {folder} does not exist", "Create it first")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {target}", _os_reason(error), "Choose a folder that you may write to"
        ) from error
    return target


def _write(target: Path, payload: bytes) -> None:
    try:
        with whole(target) as partial:
            partial.write_bytes(payload)
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {target}", _os_reason(error), "Free some space or choose another folder"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter and its optimiser print, warn and log; what matters arrives as an exception."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def root_cause(error: BaseException) -> str:
    """The exporter wraps what really went wrong in pages of advice: follow the chain to its end."""
    if isinstance(error, HalpError):
        return error.why
    while error.__cause__ is not None:
        error = error.__cause__
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _os_reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
