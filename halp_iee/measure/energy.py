"""Energy of a call on an NVIDIA GPU, from the counter that the driver keeps (NVML)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from halp_profiler import nvml


@dataclass(frozen=True)
class Energy:
    """What the whole board drew while one network ran back to back.

    Attributes:
        mj_per_call: millijoules of one call.
        watts: mean power meanwhile.
        calls: over how many calls.
    """

    mj_per_call: float
    watts: float
    calls: int


def measure_energy(
    call: Callable[[], object], gpu: int = 0, *, seconds: float = 1.0, clock: Callable[[], float] = time.perf_counter
) -> Energy | None:
    """Run ``call`` for ``seconds`` and read the energy counter before and after.

    The counter is updated some tens of times a second, so a stretch of a second is good to a few percent.

    Args:
        call: returns when the GPU is done.
        gpu: CUDA's number of it.
        seconds: length of the stretch.
        clock: in seconds.

    Returns:
        None where NVML, the GPU or the counter (Volta and later have it) is not there, or it did not move.
    """
    found = nvml.attached()
    if gpu >= len(found):
        return None
    with nvml.library() as library:
        if library is None:
            return None
        try:
            handle = library.nvmlDeviceGetHandleByUUID(found[gpu].uuid)
            return _between(library, handle, call, seconds, clock)
        except library.NVMLError:
            return None


def _between(
    library: Any, handle: Any, call: Callable[[], object], seconds: float, clock: Callable[[], float]
) -> Energy | None:
    call()
    before_mj, start, calls = library.nvmlDeviceGetTotalEnergyConsumption(handle), clock(), 0
    while (spent := clock() - start) < seconds:
        call()
        calls += 1
    used_mj = library.nvmlDeviceGetTotalEnergyConsumption(handle) - before_mj
    if not calls or used_mj <= 0:
        return None
    return Energy(used_mj / calls, used_mj / 1000 / spent, calls)
