"""What makes the numbers: one file a backend, behind the small protocol of ``base``."""

from __future__ import annotations

from halp_profiler.backends.base import Backend, Settings
from halp_profiler.devices import Device
from halp_profiler.errors import DeviceError, UsageError

SOURCES = ("measured", "modelled")


def backend_for(
    device: Device,
    *,
    source: str | None = None,
    threads: int = 1,
    batch: int = 1,
    precision: str = "fp32",
    backend: str | None = None,
    layout: str | None = None,
    l2: str = "warm",
) -> Backend:
    """The backend of a device.

    Args:
        device: for which device.
        source: ``measured`` or ``modelled``; None: measured where the device is attached, else modelled.
        threads, batch, precision, layout, l2: see ``Settings``.
        backend: one of ``catalogue.CATALOGUE``, or ``modelled``; None: the first that can time the device.

    Raises:
        UsageError: an impossible setting, or one that the backend does not have.
        DeviceError: the source asks for what cannot be done with this device, or the runtime is missing.
    """
    if source is not None and source not in SOURCES:
        raise UsageError("The source is not known", f"it is {source!r}", "Use measured or modelled")
    settings = Settings(threads, batch, precision, layout, l2)
    if backend == "modelled" and source == "measured":
        raise UsageError("The source is not known", "a modelled device was to be measured", "Choose one of the two")
    if source == "modelled" or backend == "modelled" or not (device.attached or source or backend):
        return _modelled(device, settings)
    if not device.attached:
        raise DeviceError(
            f"{device.label} cannot be measured", "it is not attached to this machine",
            "Leave --source and --backend out for a modelled table",
        )  # fmt: skip
    from halp_profiler.backends.catalogue import choose

    entry = choose(device, backend)
    if precision not in entry.precisions:
        raise UsageError(
            f"{entry.name} does not run in {precision}", f"it knows {', '.join(entry.precisions)}",
            "Choose one of these, or another backend",
        )  # fmt: skip
    return entry.make(device, settings)


def _modelled(device: Device, settings: Settings) -> Backend:
    if device.datasheet is None:
        what = "Measure it" if device.attached else "Name another device"
        raise DeviceError(f"{device.label} cannot be modelled", "there is no datasheet for it", what)
    from halp_profiler.backends.modelled import Modelled

    return Modelled(device.datasheet, batch=settings.batch, precision=settings.precision)
