"""Whole networks on the device: BatchNorm folded, in one precision and layout, replayed as a CUDA graph."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpu_evidence.part import Part

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16}
Call = Callable[[], object]


def layout_of(precision: str) -> str:
    """Tensor cores want channels last; cuDNN's kernels for single precision do not."""
    return "nchw" if precision == "fp32" else "nhwc"


@contextmanager
def modes(part: Part, precision: str) -> Iterator[None]:
    """Inference, with cuDNN's own search for the fastest kernel and tf32 where it is asked for; as in the tables."""
    tf32 = precision == "tf32"
    before = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if part.cuda:
            stack.enter_context(torch.cuda.device(part.where))
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32))
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Whole:
    """A network that is ready to be timed."""

    call: Call
    module: nn.Module
    images: Tensor
    folded: bool


def ready(part: Part, model: nn.Module, batch: int, precision: str) -> Whole:
    """The network on the device, called once."""
    module, folded = _folded(model)
    form = torch.channels_last if layout_of(precision) == "nhwc" and part.cuda else torch.contiguous_format
    dtype = DTYPES[precision] if part.cuda else torch.float32
    module = module.to(device=part.where, dtype=dtype).to(memory_format=form)
    images = torch.randn(batch, *part.image).to(device=part.where, dtype=dtype).to(memory_format=form)

    def eager() -> object:
        return module(images)

    with modes(part, precision):
        eager()
        return Whole(_captured(part, eager) if part.cuda else eager, module, images, folded)


def _folded(model: nn.Module) -> tuple[nn.Module, bool]:
    from torch.fx.experimental.optimization import fuse

    model = copy.deepcopy(model).eval()
    try:
        return fuse(model), True
    except Exception:  # a network that fx cannot trace runs as it is, and its row says so
        return model, False


def _captured(part: Part, call: Call) -> Call:
    side = torch.cuda.Stream(part.where)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    kept: list[Any] = [graph]
    with torch.cuda.graph(graph):
        kept.append(call())  # the output, which the graph writes

    def replay() -> None:
        kept[0].replay()

    return replay


def timed_ms(part: Part, calls: Mapping[str, Call], seconds: float, precision: str) -> dict[str, np.ndarray]:
    """Samples in ms of every call, round by round in turn: by events on a GPU, by the clock on a CPU."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    with modes(part, precision):
        for call in calls.values():
            for _ in range(3):
                call()
        since, rounds = time.monotonic(), 0
        while rounds < 5 or (time.monotonic() - since < seconds and rounds < 2000):
            for name, call in calls.items():
                samples[name].append(_once_ms(part, call))
            rounds += 1
    return {name: np.asarray(found) for name, found in samples.items()}


def _once_ms(part: Part, call: Call) -> float:
    if not part.cuda:
        begin = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - begin)
    call()  # finds the cache and the clock as the network itself leaves them
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    call()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last))


def energy_mj(part: Part, ready: Whole, batch: int) -> float | None:
    """Millijoules an image from the driver's counter; None where there is none."""
    if not part.cuda:
        return None
    from halp_iee.measure.energy import measure_energy

    def call() -> None:
        ready.call()
        torch.cuda.synchronize()

    found = measure_energy(call, 0, seconds=1.0)
    return None if found is None else found.mj_per_call / batch
