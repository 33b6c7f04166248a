"""`halp-iee train`: a network, trained to a latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from halp_iee.cli import options, show, sparse
from halp_iee.cli.progress import Bars
from halp_iee.run.job import METHODS
from halp_iee.run.target import Target

SWITCHES = (
    "H", "J", "Q", "T", "omega_start", "omega_end", "start", "grow", "reactivate", "freeze", "steps", "interval",
    "min_fraction", "floor",
)  # fmt: skip
"""Settings of the methods that can be typed, by their names in `methods/config.py`."""


@click.command("train", cls=show.Command)
@options.model
@options.data
@options.target
@click.option(
    "--method", type=click.Choice([*METHODS, *sparse.METHODS]), default="iee", show_default=True,
    help="How the structure is found: iee, from scratch or from --weights; halp, one way down from --weights or from "
    "the dense reference. The others train to a sparsity, as iee does with --sparsity.",
)  # fmt: skip
@click.option("--epochs", type=click.IntRange(1), default=None, help="Epochs of training.  [default: the recipe's]")
@options.training
@options.weights
@click.option("--no-dense", is_flag=True, help="Do not train the dense reference.")
@click.option("--importance", "criterion", default="taylor_bn", show_default=True, metavar="NAME",
              help="How units are judged: taylor_bn, taylor_weight, fisher, magnitude_l1, magnitude_l2, bn_scale, "
              "random.")  # fmt: skip
@options.solver
@options.iee_switches
@options.halp_switches
@sparse.switches
@click.option(
    "--min-fraction", type=click.FloatRange(0, 1), default=None, help="Least share of its units a group keeps."
)
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
    tensorboard: bool,
    train_on: str,
    weights: str | None,
    no_dense: bool,
    criterion: str,
    solver: str,
    input_shape: tuple[int, ...] | None,
    seed: int,
    out: Path | None,
    fresh: bool,
    as_json: bool,
    **others: Any,
) -> int:
    """Train a network to a latency, or to a sparsity.

    Makes the latency table first if there is none for this device, trains the dense reference, then finds the
    structure while it trains, makes the network physically smaller, exports it and measures it.
    Interrupted, it goes on where it stopped when called again. In several processes:
    torchrun --nproc-per-node N -m halp_iee train ...

    With --sparsity, or a method that knows nothing else, weights are held at zero instead: no table is made and the
    network is not timed.

    \b
      halp-iee train --latency-target 0.3
      halp-iee train --model resnet50 --data imagefolder:/data/in --latency-target 12ms --epochs 90
      halp-iee train --method halp --weights trained.safetensors --latency-target 0.4 --epochs 10
      halp-iee train --method rigl --sparsity 0.9
      halp-iee train --method iee --pattern 2:4
    """
    from halp_iee import pipeline
    from halp_iee.cli.assemble import device_choice, recipe
    from halp_iee.run.job import Job
    from halp_iee.train.processes import first_of_torchrun

    chosen = recipe(recipe_file, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
    settings = sparse.taken(method, others)
    if settings is not None:
        return sparse.run(
            model=model, data=data, recipe=chosen, method=method, settings=settings, seed=seed, weights=weights,
            train_on=train_on, tensorboard=tensorboard, out=out, fresh=fresh, as_json=as_json,
        )  # fmt: skip
    switches = {name: value for name in SWITCHES if (value := others.pop(name)) is not None}
    job = Job(
        model=model, data=data, recipe=chosen, target=target, method=method,  # type: ignore[arg-type]
        device=device_choice(**others), seed=seed, dense=not no_dense, weights=weights, solver=solver,
        input_shape=input_shape, criterion=criterion, switches=switches, tensorboard=tensorboard,
        train_on=train_on,  # type: ignore[arg-type]
    )  # fmt: skip
    done = pipeline.train(job, out, Bars(), fresh)
    return show.finished(done.result, as_json) if first_of_torchrun() else 0
