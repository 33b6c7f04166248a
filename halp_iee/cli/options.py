"""Options that several commands share, so that they read and mean the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from halp_iee.run.target import Target

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class TargetType(click.ParamType):
    """`0.3`, `4ms` or `250fps`."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Target:
        return value if isinstance(value, Target) else Target.parse(str(value))


def compose(*decorators: Decorator) -> Decorator:
    """One decorator of many, listed in the order in which --help shows them."""

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


model = click.option(
    "--model", default="resnet20", show_default=True, metavar="NAME",
    help="A torchvision name, timm:NAME, one of this package's networks, or path/to/file.py:function.",
)  # fmt: skip
data = click.option(
    "--data", default="digits", show_default=True, metavar="SPEC",
    help="digits, digits-hard, cifar10:DIR, cifar100:DIR or imagefolder:DIR.",
)  # fmt: skip
target = click.option(
    "--latency-target", "target", type=TargetType(), default="0.3", show_default=True, metavar="TARGET",
    help="0.3 is that fraction of the dense latency; 4ms and 250fps are absolute.",
)  # fmt: skip
input_shape = click.option(
    "--input-shape", metavar="C,H,W", default=None, callback=lambda _c, _p, v: parse_shape(v),
    help="Shape of one input, where no data says it.",
)  # fmt: skip
device = compose(
    click.option(
        "--gpu",
        "--device",
        "gpu",
        metavar="NAME",
        default="cpu",
        show_default="this machine's CPU",
        help="The device to be fast on: cpu, cpu:0-3, cuda:0 or a name. Attached: measured. Not attached: modelled.",
    ),
    click.option(
        "--source",
        type=click.Choice(["auto", "measured", "modelled"]),
        default="auto",
        show_default=True,
        help="Insist on a measured table (exit 3 without the device), or on a modelled one.",
    ),
    click.option(
        "--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="CPU threads of the runtime."
    ),
    click.option("--batch", type=click.IntRange(1, 65536), default=1, show_default=True, help="Images in one call."),
    click.option(
        "--table",
        metavar="TABLE",
        default=None,
        help="A latency table, by path or name, instead of finding or making one.",
    ),
    click.option(
        "--time-budget",
        "time_budget_s",
        type=click.FloatRange(1.0, 86400.0),
        default=None,
        metavar="SECONDS",
        help="Longest time for the sweep.  [default: 60, or 180 for large inputs]",
    ),
    click.option(
        "--max-error",
        type=click.FloatRange(0.0, 1.0, min_open=True),
        default=0.02,
        show_default=True,
        help="The sweep may stop sooner, at this held-out error.",
    ),
    click.option("--backend", default=None, metavar="NAME",
                 help="What runs the layers; `halp-iee devices` lists them.  [default: the device's first]"),
    click.option("--precision", type=click.Choice(["fp32", "tf32", "fp16", "bf16"]), default="fp32", show_default=True),
    click.option("--layout", type=click.Choice(["nchw", "nhwc"]), default=None,
                 help="nhwc is channels-last.  [default: the backend's choice]"),
    click.option("--l2", type=click.Choice(["warm", "cold"]), default="warm", show_default=True,
                 help="State of a GPU's second-level cache."),
)  # fmt: skip
run_directory = compose(
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        default=None,
        metavar="DIR",
        help="The run's directory.  [default: runs/MODEL-DATA-TARGET]",
    ),
    click.option("--fresh", is_flag=True, help="Start again, replacing a run that lies in the directory."),
)
training = compose(
    click.option("--batch-size", type=click.IntRange(1), default=None, help="Training batch.  [default: the recipe's]"),
    click.option(
        "--lr", type=click.FloatRange(0, min_open=True), default=None, help="Learning rate.  [default: the recipe's]"
    ),
    click.option(
        "--recipe",
        "recipe_file",
        type=click.Path(path_type=Path),
        default=None,
        help="A JSON file with a training recipe.",
    ),
    click.option(
        "--tensorboard", is_flag=True, help="Write the figures for TensorBoard too, into the run's directory."
    ),
    click.option(
        "--train-on", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
        help="Where the networks are trained, whatever device they are for; auto: a CUDA GPU where there is one.",
    ),
)  # fmt: skip
weights = click.option(
    "--weights", default=None, metavar="FILE", help="Safetensors file with the trained weights of the dense network."
)
solver = click.option("--solver", type=click.Choice(["joint", "halp", "cp-sat"]), default="joint", show_default=True)
iee_switches = compose(
    click.option("--H", "H", type=click.IntRange(1), default=None, help="IEE: steps of Importance Estimation a cycle."),
    click.option("--J", "J", type=click.IntRange(0), default=None, help="IEE: steps of Accuracy Improvement; 0: none."),
    click.option("--Q", "Q", type=click.IntRange(0), default=None, help="IEE: steps of Reactivate & Explore."),
    click.option("--T", "T", type=click.IntRange(1), default=None, help="IEE: cycles."),
    click.option("--omega-start", type=float, default=None, help="IEE: first update budget, a share of the target."),
    click.option("--omega-end", type=float, default=None, help="IEE: last update budget, a share of the target."),
    click.option("--start", type=click.Choice(["random", "dense"]), default=None,
                 help="IEE: down from the whole network, or from a random structure.  [default: dense]"),
    click.option("--floor", type=click.FloatRange(0, 1), default=None,
                 help="IEE: least width of a layer that everything must pass, over that in an even network of the "
                 "target's latency.  [default: 0.5]"),
    click.option("--grow", type=click.Choice(["importance", "random"]), default=None, help="IEE: what grows back."),
    click.option("--reactivate", type=click.Choice(["mru", "zero"]), default=None,
                 help="IEE: woken units have their most recently used values, or zeros."),
    click.option("--freeze/--no-freeze", default=None, help="IEE: whether the active structure rests meanwhile."),
)  # fmt: skip
halp_switches = compose(
    click.option("--steps", type=click.IntRange(1), default=None, help="HALP: pruning steps on the way down."),
    click.option("--interval", type=click.IntRange(1), default=None, help="HALP: optimizer steps before each."),
)
width_limits = compose(
    click.option(
        "--min-fraction", type=click.FloatRange(0.0, 1.0), default=0.0, show_default=True, metavar="SHARE",
        help="Least share of its channels that any group keeps; never under one.",
    ),
    click.option(
        "--width-step", type=click.IntRange(1), default=1, show_default=True, metavar="N",
        help="Widths are multiples of N, or whole; 8 suits most GPUs.",
    ),
)  # fmt: skip
allow_block_removal = click.option(
    "--allow-block-removal", is_flag=True,
    help="Residual branches may be removed whole, where one module adds its branch to its own input.",
)  # fmt: skip
also = click.option(
    "--also",
    multiple=True,
    metavar="TABLE=TARGET",
    help="One more budget that the same network must hold: another latency table (a second device, or batch 32), and "
    "a target as above. May be given several times.",
)
keep_importance = click.option(
    "--keep-importance", type=click.FloatRange(0.0, 1.0, min_open=True), default=None, metavar="SHARE",
    help="Instead of a target: the least latency that keeps this share of the importance.",
)  # fmt: skip
json_flag = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON document on stdout.")
seed = click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of everything that is random."
)


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """Read `3,224,224`.

    Raises:
        click.BadParameter: not positive whole numbers.
    """
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1 or len(shape) > 5:
        raise click.BadParameter(f"{text!r} is not a shape; give positive whole numbers such as 3,224,224")
    return shape
