"""What makes the numbers: one file a backend, behind the small protocol of ``base``."""

from __future__ import annotations

from halp_profiler.backends.base import Backend
from halp_profiler.devices import Device
from halp_profiler.errors import DeviceError, UsageError

SOURCES = ("measured", "modelled")


def backend_for(
    device: Device, *, source: str | None = None, threads: int = 1, batch: int = 1, precision: str = "fp32"
) -> Backend:
    """The backend of a device.

    Args:
        device: for which device.
        source: ``measured`` or ``modelled``; None: measured where that can be done, else modelled.
        threads: of the runtime, on a CPU.
        batch: images per call.
        precision: ``fp32``; modelled devices know more.

    Raises:
        UsageError: an impossible setting.
        DeviceError: the source asks for what cannot be done with this device, or the runtime is missing.
    """
    if source is not None and source not in SOURCES:
        raise UsageError("The source is not known", f"it is {source!r}", "Use measured or modelled")
    if threads < 1 or batch < 1:
        raise UsageError("The device cannot be profiled", f"{threads} threads, batch {batch}", "Use 1 or more of both")
    if device.kind == "cpu":
        if source == "modelled":
            raise DeviceError(f"{device.label} cannot be modelled", "there is no datasheet for it", "Measure it")
        if precision != "fp32":
            raise UsageError("The CPU is profiled in fp32 only", f"precision is {precision!r}", "Use fp32")
        from halp_profiler.backends.ort_cpu import OrtCpu

        return OrtCpu(threads=threads, batch=batch)
    if source == "measured":
        why = "attached GPUs cannot be timed yet" if device.attached else "it is not attached to this machine"
        raise DeviceError(f"{device.label} cannot be measured", why, "Leave the source out for a modelled table")
    if device.datasheet is None:
        raise DeviceError(f"{device.label} cannot be modelled", "there is no datasheet for it", "Name another device")
    from halp_profiler.backends.modelled import Modelled

    return Modelled(device.datasheet, batch=batch, precision=precision)
