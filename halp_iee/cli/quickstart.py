"""`halp-iee quickstart`: the whole job on real digits, in minutes."""

from __future__ import annotations

from pathlib import Path

import click

from halp_iee.cli import options, show
from halp_iee.cli.progress import Bars

EPOCHS = 30
"""Of each training. Half as many ended more than a point under the dense network in one run of seven."""


@click.command("quickstart", cls=show.Command)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/quickstart"), show_default=True, metavar="DIR"
)
@click.option("--fresh", is_flag=True, help="Run it again although it is finished.")
@options.seed
@options.json_flag
def command(out: Path, fresh: bool, seed: int, as_json: bool) -> int:
    """Run the whole job on a small real example.

    A ResNet-20 on scikit-learn's handwritten digits, on this CPU with ONNX Runtime, one thread, batch 1: trains the
    dense reference, sweeps the latency table, finds a network of 30% of the dense latency with IEE from scratch,
    makes it physically smaller, exports it to ONNX behind the parity gate, and measures both.
    """
    from halp_iee import pipeline
    from halp_iee.run.job import DeviceChoice, Job
    from halp_iee.train.recipe import Recipe

    job = Job(
        model="resnet20", data="digits", recipe=Recipe.of({"seed": seed, "epochs": EPOCHS}), seed=seed,
        device=DeviceChoice(table=str(out / "table.jsonl"), time_budget_s=40.0),
    )  # fmt: skip
    done = pipeline.train(job, out, Bars(), fresh)
    return show.finished(done.result, as_json)
