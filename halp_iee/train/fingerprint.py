"""What makes two trainings different ones."""

from __future__ import annotations

import json
from collections.abc import Mapping

from torch import nn

import halp_iee
from halp_iee.train.method import Method
from halp_iee.train.processes import Processes
from halp_iee.train.recipe import Recipe
from halp_iee.train.records import Data


def fingerprint(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    method: Method | None,
    processes: Processes,
    identity: Mapping[str, str],
) -> dict[str, str]:
    """Key -> text; a checkpoint that differs in any is of another run."""
    # Names of parameters, not shapes: those change while a method is at work, and are compared when
    # the tensors are loaded.
    return {
        **identity,
        "network": f"{type(model).__name__} of {sum(1 for _ in model.named_parameters())} parameters",
        "data set": data.fingerprint,
        "recipe": json.dumps(recipe.model_dump(), sort_keys=True),
        "method": "none" if method is None else type(method).__name__,
        "processes": str(processes.world),
        "version of halp-iee": halp_iee.__version__,
    }
