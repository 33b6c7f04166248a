"""Several processes that train one network: who they are, what they tell each other, and shared BatchNorm statistics.

Started by ``torchrun --nproc-per-node N -m halp_iee train ...``. One process is the same code with a world of one.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from halp_iee.errors import DeviceError, HalpError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """This process among all that train the network.

    Attributes:
        rank: number of this process, from 0; 0 is the one that writes, measures and decides.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> Processes:
        """The process group that was started, or one process alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def part(self) -> tuple[int, int]:
        """Which part of every batch is this process's, for `Split.batches`."""
        return self.rank, self.world

    def total(self, *values: float) -> tuple[float, ...]:
        """Sums over all processes, in double precision."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tuple(tensor.tolist())

    def share(self, value: Result) -> Result:
        """The first process's value, on all of them."""
        if self.world == 1:
            return value
        box = [value if self.first else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    def gather(self, value: Result) -> list[Result]:
        """Every process's value, in the order of their ranks, on all of them."""
        if self.world == 1:
            return [value]
        boxes: list[Any] = [None] * self.world
        dist.all_gather_object(boxes, value)
        return boxes

    def once(self, work: Callable[[], Result]) -> Result:
        """Do something in the first process alone and give its result to all; its error is raised in all of them."""
        if self.world == 1:
            return work()
        result, error = None, None
        if self.first:
            try:
                result = work()
            except HalpError as raised:
                error = raised
        failed = self.share(None if error is None else (type(error), error.what, error.why, error.remedy))
        if error is not None:
            raise error
        if failed is not None:
            kind, *said = failed
            raise kind(*said)
        return self.share(result)  # type: ignore[return-value]

    def same_values(self, model: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if self.world > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.detach(), src=0)


def training_device(wanted: str = "auto") -> torch.device:
    """Where this process trains: its own GPU if there is one, else the CPU.

    Args:
        wanted: `auto`, `cpu` or `cuda`.

    Raises:
        DeviceError: `cuda`, and there is none.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    there = torch.cuda.is_available() and torch.cuda.device_count() > local
    if wanted == "cuda" and not there:
        raise DeviceError("the training cannot run on CUDA", "torch sees no such device here", "leave --train-on out")
    return torch.device("cuda", local) if there and wanted != "cpu" else torch.device("cpu")


def first_of_torchrun() -> bool:
    """Whether this process is to print results: the only one, or the first that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def started() -> Iterator[Processes]:
    """Join the processes that torchrun started, if it did: gloo on CPUs, NCCL where every process has a GPU.

    Raises:
        DeviceError: the others could not be reached.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or dist.is_initialized():
        yield Processes.here()
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.is_available() and torch.cuda.device_count() > local
    if gpus:
        torch.cuda.set_device(local)
    # Its functions' defaults hold the group that stands when it is imported. DistributedDataParallel imports it, and
    # gloo's threads would then outlive the group: one that lets go of a tensor while Python ends aborts the process.
    importlib.import_module("torch.distributed.nn.functional")
    try:
        # A latency table is swept by the first process alone, and the others wait for it.
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=timedelta(hours=24))
    except (RuntimeError, ValueError, dist.DistError) as error:
        raise DeviceError(
            f"the {world} processes could not find each other", str(error).split("\n", 1)[0],
            "start them with torchrun --nproc-per-node N -m halp_iee train ...",
        ) from error  # fmt: skip
    try:
        yield Processes.here()
    finally:
        dist.destroy_process_group()
        gc.collect()  # the wrapped models hold the group too, in cycles


def wrapped(model: nn.Module, processes: Processes, unused: bool) -> nn.Module:
    """The model as DistributedDataParallel runs it; as it is in one process.

    The wrapper remembers parameters, so a model whose channels changed is wrapped anew. Values are the same
    everywhere already, and stay so: the same gradients move them by the same rule.

    Args:
        unused: some parameters may get no gradient.
    """
    if processes.world == 1:
        return model
    return DistributedDataParallel(
        model, broadcast_buffers=False, init_sync=False, find_unused_parameters=unused, gradient_as_bucket_view=False
    )


class _Moments(torch.autograd.Function):
    """Sums over all processes; backwards the gradients are summed likewise."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:
        sums = sums.clone()
        dist.all_reduce(sums)
        return sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient


def _shared_forward(self: Any, x: Tensor) -> Tensor:
    if not self.training and self.running_mean is not None:
        return type(self)._alone.forward(self, x)
    self._check_input_dim(x)
    axes = [0, *range(2, x.dim())]
    shape = [1, -1] + [1] * (x.dim() - 2)
    wide = x.double() if x.dtype == torch.float64 else x.float()
    count = wide.new_full((1,), x.numel() / x.shape[1])
    # Two passes, as in one process: the variance from a mean of squares would lose digits.
    sums = _Moments.apply(torch.cat([wide.sum(axes), count]))
    total, mean = sums[-1], sums[:-1] / sums[-1]
    variance = _Moments.apply((wide - mean.reshape(shape)).square().sum(axes)) / total
    if self.training and self.track_running_stats and self.running_mean is not None:
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            rate = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), rate)
            unbiased = variance.detach() * total / (total - 1).clamp(min=1)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), rate)
    y = (wide - mean.reshape(shape)) * torch.rsqrt(variance + self.eps).reshape(shape)
    if self.affine:
        y = y * self.weight.reshape(shape) + self.bias.reshape(shape)
    return y.to(x.dtype)


_shared_classes: dict[type, type] = {}


@contextmanager
def shared_statistics(model: nn.Module, processes: Processes) -> Iterator[None]:
    """Within it every BatchNorm normalises with the statistics of the whole batch, over all processes.

    `torch.nn.SyncBatchNorm` does the same, on GPUs only. The modules are the same objects before and after;
    in between their class is a subclass of their own.
    """
    if processes.world == 1:
        yield
        return
    changed: list[tuple[nn.Module, type[nn.Module]]] = []
    for module in model.modules():
        kind: Any = type(module)
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm) and not hasattr(kind, "_alone"):
            if kind not in _shared_classes:
                body: Mapping[str, Any] = {"forward": _shared_forward, "_alone": kind}
                _shared_classes[kind] = type(f"Shared{kind.__name__}", (kind,), dict(body))
            module.__class__ = _shared_classes[kind]
            changed.append((module, kind))
    try:
        yield
    finally:
        for module, kind in changed:
            module.__class__ = kind
