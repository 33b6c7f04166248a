"""The options of `train` that ask for a sparsity instead of a latency, and what happens then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from halp_iee.cli import options, show
from halp_iee.errors import HalpError, UsageError

if TYPE_CHECKING:
    from halp_iee.train.recipe import Recipe

METHODS = ("rigl", "set", "srigl", "mest", "chase", "gmp", "snip", "static")
"""Methods that know sparsity alone; `iee` knows both, and `--sparsity` makes it this one."""

switches = options.compose(
    click.option("--sparsity", type=float, default=None, metavar="S", help="Sparse training: the fraction of zeros."),
    click.option("--pattern", default=None, metavar="NAME",
                 help="Sparse training: unstructured, channel, kernel, fan-in, 2:4 (any N:M), 4x1 (any block)."),
    click.option("--distribution", default=None, metavar="NAME", help="Sparse training: uniform, erk or global; or a "
                 "JSON file of layer: sparsity."),
    click.option("--exclude", multiple=True, metavar="LAYER", help="Sparse training: a layer, or a pattern of names, "
                 "that stays dense; may be given more than once."),
    click.option("--update-every", "every", type=click.IntRange(1), default=None, metavar="STEPS",
                 help="Sparse training: steps between updates.  [default: the method's]"),
    click.option("--variant", type=click.Choice(["plain", "em", "em&s"]), default=None, help="Of mest."),
    click.option("--unused", type=click.Choice(["zero", "initial"]), default=None,
                 help="Of iee: what weights that have never lived are woken with.  [default: initial with --weights]"),
    click.option("--gradient-batches", type=click.IntRange(1), default=None,
                 help="Of rigl: batches whose gradients are summed to grow by.  [default: 1]"),
    click.option("--gamma", type=float, default=None, help="Of srigl: share of salient weights that a neuron needs."),
    click.option("--channel-sparsity", type=float, default=None, help="Of chase: the fraction of channels removed."),
    click.option("--as-published", is_flag=True, default=None,
                 help="Of the pattern kernel: take the sparsity as MEST's reference code does."),
    click.option("--prune-skip", is_flag=True, default=None, help="Of chase: remove channels of residual connections."),
)  # fmt: skip

_NAMES = (
    "sparsity", "pattern", "distribution", "exclude", "every", "variant", "gamma", "channel_sparsity", "prune_skip",
    "as_published", "unused", "gradient_batches",
)  # fmt: skip
_SHARED = (
    "model", "data", "method", "epochs", "batch_size", "lr", "recipe_file", "tensorboard", "train_on", "weights",
    "seed", "out", "fresh", "as_json",
)  # fmt: skip
_OF_IEE = ("H", "J", "Q", "omega_start", "omega_end", "grow", "reactivate", "freeze")
"""Switches that IEE has for weights too."""


def taken(method: str, others: dict[str, Any]) -> dict[str, Any] | None:
    """Take this file's options out of `others`: the method's settings, or None if a latency is asked for.

    Raises:
        UsageError: an option of sparse training for a method that has none, or one that it has no use for.
    """
    given = {name: others.pop(name) for name in _NAMES}
    settings = {name: value for name, value in given.items() if value not in (None, (), [])}
    wanted = method in METHODS or (method == "iee" and ("sparsity" in settings or "pattern" in settings))
    if settings and not wanted:
        raise UsageError(
            f"{_option(next(iter(settings)))} cannot be used with --method {method}",
            "it is for training to a sparsity", f"give --sparsity too, or --method {', '.join(METHODS)}",
        )  # fmt: skip
    if not wanted:
        return None
    usable = {*_NAMES, *_SHARED, *(_OF_IEE if method == "iee" else ())}
    context = click.get_current_context()
    for name in context.params:
        if name not in usable and context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            raise UsageError(
                f"{_option(name)} cannot be used in training to a sparsity", "it is for training to a latency",
                "leave it out",
            )  # fmt: skip
    if method == "iee":
        settings |= {name: others[name] for name in _OF_IEE if others[name] is not None}
    if "distribution" in settings and str(settings["distribution"]).endswith(".json"):
        settings["distribution"] = _of_each_layer(Path(settings["distribution"]))
    return settings


def _of_each_layer(file: Path) -> dict[str, float]:
    """The distribution that a person has written down."""
    from halp_iee.run.directory import read_json

    try:
        return dict(read_json(file, dict[str, float]))
    except HalpError as error:
        raise UsageError(
            f"the distribution {file} cannot be used", error.why,
            'write a JSON object such as {"layer1.0.conv1": 0.9}, a sparsity for every layer that is not dense',
        ) from None  # fmt: skip


def _option(parameter: str) -> str:
    """A parameter's name, as it is typed."""
    named = {p.name: p.opts[0] for p in click.get_current_context().command.params}
    return str(named[parameter])


def run(
    *, model: str, data: str, recipe: Recipe, method: str, settings: dict[str, Any], seed: int, weights: str | None,
    train_on: str, tensorboard: bool, out: Path | None, fresh: bool, as_json: bool,
) -> int:  # fmt: skip
    """Train to a sparsity and print what came out."""
    from halp_iee.cli.progress import Bars
    from halp_iee.run.job import short_name
    from halp_iee.run.sparse import SparseJob, train_sparse
    from halp_iee.train.processes import first_of_torchrun, training_device

    job = SparseJob(model, data, recipe, method, settings, seed, weights, str(training_device(train_on)), tensorboard)
    asked = settings.get("sparsity") or settings.get("pattern") or "given"
    place = Path("runs") / f"{short_name(model)}-{data.split(':')[0]}-{method}-{str(asked).replace(':', 'of')}"
    result = train_sparse(job, out or place, Bars(), fresh)
    if not first_of_torchrun():
        return 0
    if as_json:
        show.emit_json(result)
        return 0
    layers = json.loads(json.dumps(result["sparsity_by_layer"]))
    of = "1 layer" if len(layers) == 1 else f"{len(layers)} layers"
    rows = [
        ["top-1 on the test set", f"{100 * result['top1']:.2f}%"],
        ["sparsity of the sparse layers", f"{100 * result['sparsity']:.2f}% ({of})"],
        ["nonzero parameters", f"{show.count(result['nonzeros'])} of {show.count(result['params'])}"],
        ["FLOPs of a forward pass", f"{show.count(result['flops'])} of {show.count(result['flops_dense'])}"],
        ["weights", result["artifact"]],
    ]
    click.echo(show.table([method, ""], rows))
    return 0
