"""Networks in torch: modules as they are (eager), and programs that torch.export saved."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from halp_iee.errors import DeviceError
from halp_iee.measure.engine import Feeds, Spec

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class TorchEngine:
    """A module that takes tensors by position."""

    module: Callable[..., Any]
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    device: str = "cpu"
    kind: str = "eager"

    @property
    def runtime(self) -> str:
        return f"torch {torch.__version__.split('+')[0]} {self.kind}"

    @classmethod
    def of_module(cls, module: nn.Module, example: Sequence[torch.Tensor], *, device: str = "cpu") -> TorchEngine:
        """A module in evaluation mode; the batch is open.

        Raises:
            DeviceError: torch cannot reach the device.
        """
        _require(device)
        module = module.eval().to(device)
        names = [p for p in inspect.signature(module.forward).parameters if p not in ("args", "kwargs")]
        inputs = tuple(
            _spec(names[i] if i < len(names) else f"input_{i}", tensor, open_batch=True)
            for i, tensor in enumerate(example)
        )
        with torch.inference_mode():
            leaves = _tensors(module(*(tensor.to(device) for tensor in example)))
        outputs = tuple(_spec(f"output_{i}", tensor, open_batch=True) for i, tensor in enumerate(leaves))
        return cls(module, inputs, outputs, device)

    @classmethod
    def of_program(cls, program: ExportedProgram, *, device: str = "cpu") -> TorchEngine:
        """A program of torch.export, run as the graph that it holds."""
        _require(device)
        signature = program.graph_signature
        found = {node.name: node.meta.get("val") for node in program.graph.nodes}
        inputs = tuple(_spec(name, found[name]) for name in signature.user_inputs if isinstance(name, str))
        outputs = tuple(_spec(name, found[name]) for name in signature.user_outputs if isinstance(name, str))
        module = program.module()
        if device != "cpu":
            module.to(device)
        return cls(module, inputs, outputs, device, "export")

    @classmethod
    def load(cls, file: str | Path, *, device: str = "cpu") -> TorchEngine:
        """Read a ``.pt2`` file that holds no pickle, such as ``halp-iee export --format torch-export`` writes.

        Raises:
            ArtifactError: missing, broken, or with a pickle in it.
        """
        from halp_iee.export.torch_export import read_program

        return cls.of_program(read_program(Path(file)), device=device)

    def run(self, feeds: Feeds) -> list[np.ndarray]:
        with torch.inference_mode():
            leaves = _tensors(self.module(*self._tensors_in(feeds)))
        return [(t.float() if t.dtype is torch.bfloat16 else t).cpu().numpy() for t in leaves]

    def prepare(self, feeds: Feeds) -> Callable[[], Any]:
        given, module = self._tensors_in(feeds), self.module
        settle = torch.cuda.synchronize if self.device.startswith("cuda") else None

        def once() -> None:
            with torch.inference_mode():
                module(*given)
            if settle is not None:
                settle()

        return once

    def _tensors_in(self, feeds: Feeds) -> list[torch.Tensor]:
        return [torch.from_numpy(feeds[spec.name].copy()).to(self.device) for spec in self.inputs]


def _require(device: str) -> None:
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(
            f"torch cannot reach {device}", "it finds no CUDA device", "Check the driver, or leave --device out"
        )


def _tensors(result: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def _spec(name: str, tensor: Any, *, open_batch: bool = False) -> Spec:
    shape = tuple(size if type(size) is int else None for size in tensor.shape)
    if open_batch and shape:
        shape = (None, *shape[1:])
    try:
        dtype = torch.empty(0, dtype=tensor.dtype).numpy().dtype
    except TypeError:
        dtype = None
    return Spec(name, shape, dtype, str(tensor.dtype).removeprefix("torch."))
