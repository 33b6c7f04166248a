"""Comes back to a run that is finished: its result, and its network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halp_iee import models
from halp_iee.errors import HalpError
from halp_iee.run.directory import RunDirectory, read_json
from halp_iee.slim.artifact import load


def finished_run(path: Path) -> tuple[RunDirectory, dict[str, Any]]:
    """The directory and the result of a run.

    Raises:
        HalpError: no such directory, not a run, or not finished.
    """
    if not path.is_dir():
        raise HalpError(
            f"there is no run at {path}", "it is not a directory", "give the directory that train or prune printed"
        )
    if not (path / "config.json").is_file():
        raise HalpError(
            f"{path} is not a run", "it holds no config.json", "give the directory that train or prune printed"
        )
    if not (path / "result.json").is_file():
        raise HalpError(
            f"the run {path} is not finished",
            "it holds no result.json yet",
            "call the command that began it again; it goes on where it stopped",
        )
    result = read_json(path / "result.json")
    if not isinstance(result, dict) or not {"model", "input_shape", "target_ms"} <= result.keys():
        raise HalpError(
            f"the result of {path} is broken", "result.json lacks what every result holds", "run it again with --fresh"
        )
    return RunDirectory(path), result


def slim_network(run: RunDirectory, result: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    """The slim network of a run and an example of its input, rebuilt from the artifact.

    Raises:
        ArtifactError: the artifact is broken or of another network.
        UsageError: the network's constructor cannot be found any more.
    """
    shape = result["input_shape"]
    if result["num_classes"] is None:
        dense = models.build(result["model"])
    else:
        dense = models.build(
            result["model"], num_classes=result["num_classes"], in_channels=shape[0], image_size=shape[-1]
        )
    example = torch.randn(int(result["batch"]), *shape, generator=torch.Generator().manual_seed(int(result["seed"])))
    return load(run.artifact, dense).eval(), example
