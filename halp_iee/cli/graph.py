"""`halp-iee graph`: the channel groups of a network."""

from __future__ import annotations

import click

from halp_iee.cli import options, show


@click.command("graph", cls=show.Command)
@options.model
@options.input_shape
@click.option("--html", type=click.Path(dir_okay=False), help="Also draw it: layers, groups, what is frozen and why.")
@options.json_flag
def command(model: str, input_shape: tuple[int, ...] | None, html: str | None, as_json: bool) -> int:
    """Show which channels of a network are tied together, and what is frozen and why."""
    import torch

    from halp_iee import models, trace

    network = models.build(model)
    graph = trace(network, torch.zeros(1, *(input_shape or models.default_input_shape(model))))
    groups = graph.groups
    if html is not None:
        from halp_iee.report import graph_picture

        graph_picture.write(graph, html, title=model)
        click.echo(f"The picture is in {html}", err=True)
    if as_json:
        fields = ("name", "size", "prunable", "reason", "layers")
        show.emit_json({"model": model, "groups": [{f: getattr(g, f) for f in fields} for g in groups]})
        return 0
    rows = [[g.name, str(g.size), "yes" if g.prunable else "no", g.reason or _few(g.layers)] for g in groups]
    show.line(show.table(["group", "units", "prunable", "layers, or why not"], rows))
    units = sum(g.size for g in groups if g.prunable)
    show.line(f"\n{sum(g.prunable for g in groups)} of {len(groups)} groups can be pruned, {units} units in all.")
    return 0


def _few(layers: tuple[str, ...], most: int = 4) -> str:
    return ", ".join(layers[:most]) + (f" and {len(layers) - most} more" if len(layers) > most else "")
