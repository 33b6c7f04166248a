"""`halp-iee devices`: what can be measured here, and what can be modelled."""

from __future__ import annotations

import click

from halp_iee.cli import options, show


@click.command("devices")
@options.json_flag
def command(as_json: bool) -> int:
    """List the devices that can be measured here, and those that can be modelled."""
    from halp_profiler.devices import attached, known

    from halp_iee.measure import runtime

    here, modelled = attached(), known()
    if as_json:
        show.emit_json({
            "attached": [d.to_json() for d in here], "modelled": [d.to_json() for d in modelled],
            "runtimes": runtime.describe(),
        })  # fmt: skip
        return 0
    click.echo("Attached: latencies are measured")
    for device in here:
        click.echo(f"  {device.key:<12}{device.name}")
    click.echo("\nKnown from datasheets: latencies are modelled, and marked so")
    for device in modelled:
        click.echo(f"  {device.key:<12}{device.name}")
    click.echo("\nRuntimes")
    for name, version in runtime.describe().items():
        click.echo(f"  {name:<12}{version}")
    return 0
