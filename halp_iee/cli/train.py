"""`halp-iee train`: a network, trained to a latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from halp_iee.cli import options, show
from halp_iee.cli.progress import Bars
from halp_iee.run.target import Target


@click.command("train", cls=show.Command)
@options.model
@options.data
@options.target
@click.option(
    "--method", type=click.Choice(["iee"]), default="iee", show_default=True, help="How the structure is found."
)
@click.option("--epochs", type=click.IntRange(1), default=None, help="Epochs of training.  [default: the recipe's]")
@click.option("--batch-size", type=click.IntRange(1), default=None, help="Training batch.  [default: the recipe's]")
@click.option(
    "--lr", type=click.FloatRange(0, min_open=True), default=None, help="Learning rate.  [default: the recipe's]"
)
@click.option(
    "--recipe", "recipe_file", type=click.Path(path_type=Path), default=None, help="A JSON file with a training recipe."
)
@click.option(
    "--weights",
    default=None,
    metavar="FILE",
    help="Safetensors file with trained weights: start from them, not from scratch.",
)
@click.option("--no-dense", is_flag=True, help="Do not train the dense reference.")
@click.option("--solver", type=click.Choice(["joint", "halp", "cp-sat"]), default="joint", show_default=True)
@options.input_shape
@options.device
@options.seed
@options.run_directory
@options.json_flag
def command(
    model: str,
    data: str,
    target: Target,
    method: str,
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    recipe_file: Path | None,
    weights: str | None,
    no_dense: bool,
    solver: str,
    input_shape: tuple[int, ...] | None,
    seed: int,
    out: Path | None,
    fresh: bool,
    as_json: bool,
    **device: Any,
) -> int:
    """Train a network to a latency.

    Makes the latency table first if there is none for this device, trains the dense reference, then finds the
    structure with IEE while it trains, makes the network physically smaller, exports it and measures it.
    Interrupted, it goes on where it stopped when called again.

    \b
      halp-iee train --latency-target 0.3
      halp-iee train --model resnet50 --data imagefolder:/data/in --latency-target 12ms --epochs 90
    """
    from halp_iee import pipeline
    from halp_iee.cli.assemble import device_choice, recipe
    from halp_iee.run.job import Job

    chosen = recipe(recipe_file, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
    job = Job(
        model=model, data=data, recipe=chosen, target=target, device=device_choice(**device),
        seed=seed, dense=not no_dense, weights=weights, solver=solver, input_shape=input_shape,
    )  # fmt: skip
    done = pipeline.train(job, out, Bars(), fresh)
    return show.finished(done.result, as_json)
