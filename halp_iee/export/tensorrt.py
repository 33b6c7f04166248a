"""Networks as TensorRT engines, API 10 and 11, made from an ONNX file that has passed the gate.

Networks are strongly typed: the precision is that of the ONNX file (half precision, or explicit quantisation by its
Q/DQ nodes), which is the one way that both versions share; version 11 has no other.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halp_iee.errors import DeviceError, GraphError
from halp_iee.measure.engine import Feeds, Spec

WORKSPACE_BYTES = 4 << 30


def require_tensorrt(command: str, onnx_command: str) -> Any:
    """The ``tensorrt`` module.

    Args:
        command: that makes the engine where TensorRT is.
        onnx_command: that makes the ONNX file from which ``trtexec`` can make it as well.

    Raises:
        DeviceError: TensorRT or the GPU is not there; the remedy is what to run on a machine that has them.
    """
    remedy = (
        f"On the machine with the GPU that it is for, run: pip install 'halp-iee[tensorrt]' && {command}; "
        f"or, with ONNX alone: {onnx_command}, and there trtexec --onnx=exported.onnx --stronglyTyped "
        "--saveEngine=exported.engine"
    )
    try:
        found = importlib.import_module("tensorrt")
    except ImportError as error:
        raise DeviceError("TensorRT is needed here", f"it is not installed ({error})", remedy) from error
    if not torch.cuda.is_available():
        raise DeviceError("TensorRT cannot build an engine", "torch finds no NVIDIA GPU here", remedy)
    return found


def write_engine(
    trt: Any,
    onnx: Path,
    path: Path,
    *,
    metadata: Mapping[str, str],
    exact: bool,
    batches: tuple[int, int, int] | None = None,
    timing_cache: Path | None = None,
) -> tuple[Path, Path]:
    """Build and write an engine, and its provenance beside it as JSON (an engine has no place for it).

    Args:
        trt: the module.
        onnx: the network, in the precision that is wanted.
        path: of the engine.
        metadata: provenance.
        exact: compute single precision as such, without TF32.
        batches: least, usual and largest batch, for a network whose batch is open.
        timing_cache: of earlier builds on this GPU with this version; read if it is there, and updated.

    Returns:
        Both files.

    Raises:
        GraphError: TensorRT cannot parse or build it.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # the only kind from 11 on
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx.read_bytes()):
        said = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise GraphError(
            "Cannot export the network to TensorRT", said[:300] or "it does not parse the ONNX file",
            "Try another --opset, or export to ONNX",
        )  # fmt: skip
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    if exact and hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)
    if batches is not None:
        config.add_optimization_profile(_profile(builder, network, batches))
    if timing_cache is not None:
        known = timing_cache.read_bytes() if timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise GraphError(
            "Cannot export the network to TensorRT", "the builder found no way to run it",
            "Try another precision, or export to ONNX",
        )  # fmt: skip
    path.write_bytes(bytes(plan))
    if timing_cache is not None:
        from halp_profiler.files import whole

        with whole(timing_cache) as partial:
            partial.write_bytes(bytes(config.get_timing_cache().serialize()))
    about = path.with_name(path.name + ".json")
    about.write_text(json.dumps({**metadata, "tensorrt": str(trt.__version__)}, indent=1) + "\n")
    return path, about


def _profile(builder: Any, network: Any, batches: tuple[int, int, int]) -> Any:
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        given = network.get_input(i)
        rest = tuple(given.shape)[1:]
        profile.set_shape(given.name, *((batch, *rest) for batch in batches))
    return profile


@dataclass(frozen=True)
class TensorRtEngine:
    """An engine that was built in this process; others are not read, since reading one can run code."""

    runtime: str
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    context: Any
    _alive: tuple[Any, ...] = field(default=(), repr=False)

    @classmethod
    def of_plan(cls, trt: Any, plan: bytes) -> TensorRtEngine:
        """Raises GraphError where TensorRT does not take its own engine back."""
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise GraphError("Cannot run the engine", "TensorRT does not take it back", "Build it again")
        specs: dict[bool, list[Spec]] = {True: [], False: []}
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            shape = tuple(None if size < 0 else int(size) for size in engine.get_tensor_shape(name))
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            specs[is_input].append(Spec(name, shape, dtype, str(dtype)))
        version = f"TensorRT {trt.__version__}"
        context = engine.create_execution_context()
        return cls(version, tuple(specs[True]), tuple(specs[False]), context, (runtime, engine))

    def run(self, feeds: Feeds) -> list[np.ndarray]:
        call, outputs = self._bound(feeds)
        call()
        return [tensor.cpu().numpy() for tensor in outputs]

    def prepare(self, feeds: Feeds) -> Callable[[], Any]:
        return self._bound(feeds)[0]

    def _bound(self, feeds: Feeds) -> tuple[Callable[[], Any], list[torch.Tensor]]:
        given = [torch.from_numpy(np.ascontiguousarray(feeds[spec.name])).cuda() for spec in self.inputs]
        for spec, tensor in zip(self.inputs, given, strict=True):
            self.context.set_input_shape(spec.name, tuple(tensor.shape))
            self.context.set_tensor_address(spec.name, tensor.data_ptr())
        outputs = []
        for spec in self.outputs:
            shape = tuple(self.context.get_tensor_shape(spec.name))
            outputs.append(torch.empty(shape, dtype=torch.from_numpy(np.empty(0, spec.dtype)).dtype, device="cuda"))
            self.context.set_tensor_address(spec.name, outputs[-1].data_ptr())
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())

        def once() -> tuple[Any, ...]:
            self.context.execute_async_v3(stream.cuda_stream)
            stream.synchronize()
            return (*given, *outputs)  # kept alive as long as the call is

        return once, outputs
