"""`halp-iee graph`: the channel groups of a network."""

from __future__ import annotations

import click

from halp_iee.cli import options, show


@click.command("graph")
@options.model
@options.input_shape
@options.json_flag
def command(model: str, input_shape: tuple[int, ...] | None, as_json: bool) -> int:
    """Show which channels of a network are tied together, and what is frozen and why."""
    import torch

    from halp_iee import models, trace

    network = models.build(model)
    graph = trace(network, torch.zeros(1, *(input_shape or models.default_input_shape(model))))
    groups = graph.groups
    if as_json:
        fields = ("name", "size", "prunable", "reason", "layers")
        show.emit_json({"model": model, "groups": [{f: getattr(g, f) for f in fields} for g in groups]})
        return 0
    rows = [[g.name, str(g.size), "yes" if g.prunable else "no", g.reason or _few(g.layers)] for g in groups]
    click.echo(show.table(["group", "units", "prunable", "layers, or why not"], rows))
    units = sum(g.size for g in groups if g.prunable)
    click.echo(f"\n{sum(g.prunable for g in groups)} of {len(groups)} groups can be pruned, {units} units in all.")
    return 0


def _few(layers: tuple[str, ...], most: int = 4) -> str:
    return ", ".join(layers[:most]) + (f" and {len(layers) - most} more" if len(layers) > most else "")
