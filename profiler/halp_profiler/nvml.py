"""NVIDIA GPUs as the driver's management library (NVML) sees them; no CUDA context is made here.

The package is ``nvidia-ml-py``, imported as ``pynvml``. Field and function names as in NVIDIA's NVML API reference.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from halp_profiler.watch import BUSY

THROTTLED = "throttled"
"""Flag of a point during which the GPU was kept under its clock."""

# nvmlClocksEventReasons: those that keep the clock under what the load would have. Idle (0x1), an application's
# own setting (0x2), boost in step with other GPUs (0x10) and the display's (0x100) are no disturbances.
_REASONS = {
    0x4: "power cap", 0x8: "hardware slowdown", 0x20: "thermal (software)", 0x40: "thermal (hardware)",
    0x80: "power brake",
}  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """An attached GPU.

    Attributes:
        index: CUDA's number of it, with ``CUDA_VISIBLE_DEVICES`` heeded.
        label: the maker's name.
        uuid: unique in the world.
        facts: driver, memory, clocks, capability.
    """

    index: int
    label: str
    uuid: str
    facts: tuple[tuple[str, Any], ...]


@contextmanager
def library() -> Iterator[Any]:
    """The initialised library; None where the package, the driver or a GPU is missing."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def attached() -> list[Gpu]:
    """The GPUs that CUDA would see, in CUDA's order by bus."""
    with library() as nvml:
        if nvml is None:
            return []
        try:
            return [_gpu(nvml, handle, i) for i, handle in enumerate(_visible(nvml))]
        except nvml.NVMLError:
            return []


def missing() -> str | None:
    """Why no GPU can be seen, in words; None where one can."""
    try:
        import pynvml
    except ImportError:
        return "the package nvidia-ml-py, which finds NVIDIA GPUs, is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as e:
        return f"the NVIDIA driver does not answer ({e})"
    pynvml.nvmlShutdown()
    return None if attached() else "the NVIDIA driver shows no GPU"


def _visible(nvml: Any) -> list[Any]:
    """Handles of the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order; it ends at the first that is none."""
    everything = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return everything
    found: list[Any] = []
    for name in filter(None, (part.strip() for part in wanted.split(","))):
        if name.isdigit() and int(name) < len(everything):
            found.append(everything[int(name)])
        elif handle := next((h for h in everything if _text(nvml.nvmlDeviceGetUUID(h)).startswith(name)), None):
            found.append(handle)
        elif name.startswith("MIG-"):
            try:
                found.append(nvml.nvmlDeviceGetHandleByUUID(name))
            except nvml.NVMLError:
                break
        else:
            break
    return found


def _gpu(nvml: Any, handle: Any, index: int) -> Gpu:
    def ask(name: str, *args: Any) -> Any:
        try:
            value = getattr(nvml, name)(handle, *args)
        except (nvml.NVMLError, AttributeError):
            return None
        return _text(value) if isinstance(value, bytes | str) else value

    capability, memory = ask("nvmlDeviceGetCudaComputeCapability"), ask("nvmlDeviceGetMemoryInfo")
    facts = {
        "driver": _text(nvml.nvmlSystemGetDriverVersion()),
        "memory_mb": None if memory is None else int(memory.total) >> 20,
        "max_clock_mhz": ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM),
        "max_memory_clock_mhz": ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_MEM),
        "capability": None if capability is None else ".".join(map(str, capability)),
    }
    label = _text(nvml.nvmlDeviceGetName(handle))
    kept = tuple((name, value) for name, value in facts.items() if value is not None)
    return Gpu(index, label, _text(nvml.nvmlDeviceGetUUID(handle)), kept)


class GpuWatch:
    """Sees whether the GPU was throttled or another process computed on it while kernels were timed.

    Make it before this process has a CUDA context and call ``own`` when it has one: inside a container the
    driver knows this process by another number, so the process that newly appears is taken for this one.

    Args:
        uuid: of the GPU.
        nvml: the library, for tests; None: the real one, initialised for the life of this object.
    """

    def __init__(self, uuid: str, nvml: Any = None) -> None:
        self._context = contextlib.ExitStack()
        self._nvml = self._context.enter_context(library()) if nvml is None else nvml
        self._handle = None if self._nvml is None else self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        self._strangers = self._processes()
        self._mine = {os.getpid()}
        self._begun_us, self._violated_ns = 0, 0

    def own(self) -> None:
        """To be called once this process has its CUDA context."""
        here = self._processes()
        if os.getpid() not in here:
            self._mine |= here - self._strangers

    def start(self) -> None:
        self._begun_us, self._violated_ns = time.time_ns() // 1000, self._violations_ns()

    def stop(self) -> tuple[str, ...]:
        """``throttled`` and ``busy``, as far as they were seen since ``start``."""
        if self._handle is None:
            return ()
        flags = [THROTTLED] if self.reasons() or self._violations_ns() > self._violated_ns else []
        return (*flags, BUSY) if self._others_busy() else tuple(flags)

    def reasons(self) -> list[str]:
        """Why the clock is held down right now; empty when it is not."""
        nvml = self._nvml
        if self._handle is None:
            return []
        for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            try:
                mask = int(getattr(nvml, name)(self._handle))
            except (AttributeError, nvml.NVMLError):
                continue
            return [word for bit, word in _REASONS.items() if mask & bit]
        return []

    def facts(self) -> dict[str, Any]:
        """What a table's header says of the GPU's state when the sweep began."""
        nvml = self._nvml
        if self._handle is None:
            return {"gpu_watched": False}
        found: dict[str, Any] = {"gpu_watched": True, "throttled_by": self.reasons() or None}
        for name, call, *args in (
            ("clock_mhz", "nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            ("memory_clock_mhz", "nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            ("power_limit_mw", "nvmlDeviceGetEnforcedPowerLimit"),
            ("temperature_c", "nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        ):
            with contextlib.suppress(nvml.NVMLError, AttributeError):
                found[name] = int(getattr(nvml, call)(self._handle, *args))
        return {name: value for name, value in found.items() if value is not None}

    def _violations_ns(self) -> int:
        """Time that the GPU has spent under its clock for heat or power, as far as this driver counts it."""
        nvml, total = self._nvml, 0
        if self._handle is None:
            return 0
        for policy in ("NVML_PERF_POLICY_POWER", "NVML_PERF_POLICY_THERMAL"):
            with contextlib.suppress(nvml.NVMLError, AttributeError):
                total += int(nvml.nvmlDeviceGetViolationStatus(self._handle, getattr(nvml, policy)).violationTime)
        return total

    def _processes(self) -> set[int]:
        if self._handle is None:
            return set()
        try:
            return {int(p.pid) for p in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)}
        except self._nvml.NVMLError:
            return set()

    def _others_busy(self) -> bool:
        """Whether another process computed since ``start``; where the driver does not tell, whether one is there."""
        others, nvml = self._processes() - self._mine, self._nvml
        if not others:
            return False
        try:
            samples = nvml.nvmlDeviceGetProcessUtilization(self._handle, self._begun_us)
        except nvml.NVMLError as e:
            return getattr(e, "value", None) != getattr(nvml, "NVML_ERROR_NOT_FOUND", 6)
        return any(s.smUtil > 0 and s.pid in others for s in samples)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
