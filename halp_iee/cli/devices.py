"""`halp-iee devices`: what can be measured here, and what can be modelled."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from halp_iee.cli import options, show

if TYPE_CHECKING:
    from halp_profiler.devices import Device


@click.command("devices")
@options.json_flag
def command(as_json: bool) -> int:
    """List devices and backends: what can be measured here and what that lacks, and what can be modelled."""
    from halp_profiler import nvml
    from halp_profiler.backends.catalogue import CATALOGUE
    from halp_profiler.devices import attached, known

    here, modelled, no_gpu = attached(), known(), nvml.missing()
    if as_json:
        show.emit_json({
            "attached": [_plain(d) | {"backends": _backends(d)} for d in here],
            "modelled": [_plain(d) for d in modelled],
            "backends": [{"name": e.name, "what": e.what, "devices": list(e.kinds), "precisions": list(e.precisions)}
                         for e in CATALOGUE.values()],
            "no_gpu": no_gpu,
        })  # fmt: skip
        return 0
    show.line("Attached: latencies are measured. The first backend that is ready is the default.")
    for device in here:
        show.line(f"  {device.name:<12}{device.label}")
        for name, lacks in _backends(device).items():
            show.line(f"    {name:<22}{lacks or 'ready'}")
    if no_gpu:
        show.line(f"  no GPU: {no_gpu}")
        for entry in (e for e in CATALOGUE.values() if "cuda" in e.kinds):
            absent = [p for m, p in entry.modules.items() if find_spec(m) is None]
            show.line(f"    {entry.name:<22}{'lacks a GPU' + ''.join(f', the package {p}' for p in absent)}")
    show.line("\nKnown from datasheets: latencies are modelled, and marked so")
    for device in modelled:
        show.line(f"  {device.name:<12}{device.label}")
    return 0


def _backends(device: Device) -> dict[str, str | None]:
    """Backend -> what it lacks to time the device."""
    from halp_profiler.backends.catalogue import CATALOGUE, missing

    return {e.name: missing(e, device) for e in CATALOGUE.values() if device.kind in e.kinds}


def _plain(device: Device) -> dict[str, Any]:
    facts = asdict(device.datasheet) if device.datasheet else None
    return {"name": device.name, "label": device.label, "kind": device.kind, "attached": device.attached,
            "details": dict(device.details), "datasheet": facts}  # fmt: skip
