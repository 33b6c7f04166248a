"""`halp-iee devices`: what can be measured here, and what can be modelled."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from halp_iee.cli import options, show

if TYPE_CHECKING:
    from halp_profiler.devices import Device


@click.command("devices")
@options.json_flag
def command(as_json: bool) -> int:
    """List the devices that can be measured here, and those that can be modelled."""
    from halp_iee.measure import runtime
    from halp_profiler.devices import attached, known

    here, modelled = attached(), known()
    if as_json:
        show.emit_json({
            "attached": [_plain(d) for d in here], "modelled": [_plain(d) for d in modelled],
            "runtimes": runtime.describe(),
        })  # fmt: skip
        return 0
    show.line("Attached: latencies are measured")
    for device in here:
        show.line(f"  {device.name:<12}{device.label}")
    show.line("\nKnown from datasheets: latencies are modelled, and marked so")
    for device in modelled:
        show.line(f"  {device.name:<12}{device.label}")
    show.line("\nRuntimes")
    for name, version in runtime.describe().items():
        show.line(f"  {name:<12}{version}")
    return 0


def _plain(device: Device) -> dict[str, Any]:
    facts = asdict(device.datasheet) if device.datasheet else None
    return {"name": device.name, "label": device.label, "kind": device.kind, "attached": device.attached,
            "details": dict(device.details), "datasheet": facts}  # fmt: skip
