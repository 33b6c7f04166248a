"""A job as the command line that asks for it again."""

from __future__ import annotations

import json
import shlex
from typing import Any

from halp_iee.run.job import DeviceChoice, Job

_TYPED = ("epochs", "batch_size", "lr", "seed")  # settings of a recipe with an option of their own
_DEVICE = {
    "name": "--gpu", "source": "--source", "table": "--table", "time_budget_s": "--time-budget",
    "max_error": "--max-error", "backend": "--backend", "precision": "--precision", "layout": "--layout", "l2": "--l2",
}  # fmt: skip


def command(job: Job) -> str:
    """What is typed to get the same job: one line, after one that writes its recipe where options cannot say it.

    Threads, batch and seed are always there: whoever compares latencies looks for them.
    """
    one_shot = job.method == "one-shot"
    words = ["halp-iee", "prune" if one_shot else "train", "--model", job.model]
    words += ["--data", job.data] if job.data else []
    if job.question.keep_importance is None:  # which is asked for instead of a target
        words += ["--latency-target", str(job.target)]
    words += ["--method", job.method] if job.method not in ("iee", "one-shot") else []
    words += ["--seed", str(job.seed), "--threads", str(job.device.threads), "--batch", str(job.device.batch)]
    words += _device(job.device)
    words += ["--input-shape", ",".join(map(str, job.input_shape))] if job.input_shape else []
    words += ["--weights", job.weights] if job.weights else []
    words += ["--importance", job.criterion] if job.criterion != "taylor_bn" else []
    words += ["--solver", job.solver] if job.solver != "joint" else []
    words += ["--no-dense"] if not one_shot and not job.dense else []
    words += [word for name, value in job.switches.items() for word in _switch(name, value)]
    words += _question(job)
    words += ["--train-on", job.train_on] if job.train_on != "auto" else []
    recipe = job.recipe.model_dump(mode="json")
    default = type(job.recipe)().model_dump(mode="json")
    if one_shot:
        words += ["--finetune-epochs", str(job.finetune_epochs)] if job.finetune_epochs else []
        default["epochs"] = recipe["epochs"]
    words += ["--epochs", str(job.recipe.epochs)] if recipe["epochs"] != default["epochs"] else []
    words += ["--batch-size", str(job.recipe.batch_size)] if recipe["batch_size"] != default["batch_size"] else []
    words += ["--lr", repr(job.recipe.lr)] if recipe["lr"] != default["lr"] else []
    rest = {name: value for name, value in recipe.items() if name not in _TYPED and value != default[name]}
    if not rest:
        return shlex.join(words)
    return f"echo {shlex.quote(json.dumps(rest))} > recipe.json\n{shlex.join([*words, '--recipe', 'recipe.json'])}"


def _device(device: DeviceChoice) -> list[str]:
    default = DeviceChoice()
    found = []
    for name, option in _DEVICE.items():
        value = getattr(device, name)
        if value != getattr(default, name):
            found += [option, str(value)]
    return found


def _question(job: Job) -> list[str]:
    question = job.question
    found = ["--min-fraction", repr(question.min_fraction)] if question.min_fraction else []
    found += ["--width-step", str(question.width_step)] if question.width_step != 1 else []
    found += [word for budget in question.also for word in ("--also", str(budget))]
    if question.keep_importance is not None:
        found += ["--keep-importance", repr(question.keep_importance)]
    return found + (["--allow-block-removal"] if question.allow_block_removal else [])


def _switch(name: str, value: Any) -> list[str]:
    """A setting of the method as it is typed."""
    if isinstance(value, bool):
        return [f"--{'' if value else 'no-'}{name.replace('_', '-')}"]
    return [f"--{name.replace('_', '-')}", str(value)]
