"""`halp-iee prune`: a trained network, made to fit a latency in one step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from halp_iee.cli import options, show
from halp_iee.cli.progress import Bars
from halp_iee.run.target import Target


@click.command("prune", cls=show.Command)
@options.model
@click.option(
    "--data", default=None, metavar="SPEC", help="Data to judge channels by, fine-tune on and test with; as in train."
)
@options.target
@options.weights
@click.option("--importance", "criterion", default=None, metavar="NAME",
              help="How units are judged.  [default: taylor_bn with data, magnitude_l2 without]")  # fmt: skip
@click.option(
    "--finetune-epochs",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Epochs of training after the pruning.",
)
@options.training
@options.solver
@options.width_limits
@options.allow_block_removal
@options.keep_importance
@options.also
@options.input_shape
@options.device
@options.seed
@options.run_directory
@options.json_flag
def command(
    model: str,
    data: str | None,
    target: Target,
    weights: str | None,
    criterion: str | None,
    finetune_epochs: int,
    batch_size: int | None,
    lr: float | None,
    recipe_file: Path | None,
    tensorboard: bool,
    train_on: str,
    solver: str,
    min_fraction: float,
    width_step: int,
    allow_block_removal: bool,
    keep_importance: float | None,
    also: tuple[str, ...],
    input_shape: tuple[int, ...] | None,
    seed: int,
    out: Path | None,
    fresh: bool,
    as_json: bool,
    **device: Any,
) -> int:
    """Make a trained network fit a latency in one step.

    Judges the channels of the weights as they are, solves for the best widths under the target, removes the others
    physically, times the result in the runtime and corrects until measured meets the target. Without data the
    channels are judged by their weights alone, and no accuracy is given.

    \b
      halp-iee prune --model resnet18 --latency-target 0.5
      halp-iee prune --model resnet20 --data digits --weights dense.safetensors --latency-target 0.4 --finetune-epochs 5
      halp-iee prune --model resnet50 --latency-target 0.5 --also titanv-b32.jsonl=0.4
      halp-iee prune --model resnet50 --keep-importance 0.9
      halp-iee prune --model resnet50 --latency-target 0.3 --allow-block-removal
    """
    from halp_iee import pipeline
    from halp_iee.cli.assemble import device_choice, recipe
    from halp_iee.errors import UsageError
    from halp_iee.importance import CRITERIA, NEEDS_GRADIENTS
    from halp_iee.run.job import Job
    from halp_iee.run.question import Budget, Question

    budgets = tuple(Budget.parse(text) for text in also)
    question = Question(min_fraction, width_step, budgets, keep_importance, allow_block_removal)
    if keep_importance is not None:
        if click.get_current_context().get_parameter_source("target") != ParameterSource.DEFAULT:
            raise UsageError(
                "two aims at once", "--keep-importance and --latency-target were given", "give one of them"
            )
        target = Target(1.0, "fraction")  # whatever keeps it, but no slower than dense
    criterion = criterion or ("taylor_bn" if data else "magnitude_l2")
    if criterion not in CRITERIA:
        raise UsageError(f"unknown importance {criterion!r}", f"there are {', '.join(CRITERIA)}", "choose one of them")
    if data is None and criterion in NEEDS_GRADIENTS:
        raise UsageError(
            f"cannot judge channels by {criterion} without data",
            "it needs gradients of the loss",
            "give --data, or --importance magnitude_l2",
        )
    if data is None and finetune_epochs:
        raise UsageError(
            "cannot fine-tune without data", "no --data was given", "give --data, or leave --finetune-epochs out"
        )
    chosen = recipe(recipe_file, epochs=max(1, finetune_epochs), batch_size=batch_size, lr=lr, seed=seed)
    job = Job(
        model=model,
        data=data,
        recipe=chosen,
        target=target,
        method="one-shot",
        device=device_choice(**device),
        seed=seed,
        dense=False,
        weights=weights,
        input_shape=input_shape,
        criterion=criterion,
        solver=solver,
        finetune_epochs=finetune_epochs,
        question=question,
        tensorboard=tensorboard,
        train_on=train_on,  # type: ignore[arg-type]
    )
    done = pipeline.prune(job, out, Bars(), fresh)
    return show.finished(done.result, as_json)
