"""Comes back to a run that is finished: its result, and its network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halp_iee import models
from halp_iee.errors import ArtifactError, HalpError
from halp_iee.run.directory import RunDirectory, read_json, sha256
from halp_iee.slim.artifact import load

RESULT_KEYS = frozenset([
    "model", "data", "method", "seed", "device", "threads", "batch", "runtime", "version", "num_classes", "input_shape",
    "target", "target_ms", "dense_ms", "predicted_ms", "measured_ms", "dense_predicted_ms", "dense_measured_ms",
    "source", "unstable", "fps_dense", "fps", "top1_dense", "top1", "params_dense", "params", "macs_dense", "macs",
    "train_flops_ratio", "train_seconds_dense", "train_seconds", "wall_seconds", "solver", "gap",
    "artifact", "onnx", "report",
])  # fmt: skip
"""What others script against, and what a finished run is shown and exported from."""


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
    run = RunDirectory(path)
    return run, read_result(run)


def finished_sparse_run(path: Path) -> tuple[RunDirectory, dict[str, Any]] | None:
    """The directory and the result of a finished training to a sparsity; None if it is anything else."""
    if not all((path / name).is_file() for name in ("config.json", "result.json")):
        return None
    run = RunDirectory(path)
    result = read_json(run.result, dict[str, Any])
    return (run, result) if is_sparse(result) else None


def read_result(run: RunDirectory) -> dict[str, Any]:
    """The result of a finished run.

    Raises:
        HalpError: it is broken.
    """
    result = read_json(run.result, dict[str, Any])
    if is_sparse(result):
        raise HalpError(
            f"{run.root} has no latency", "it was trained to a sparsity: zeros alone make no network faster",
            f"load its weights from {run.artifact}, or see its report",
        )  # fmt: skip
    lacking = sorted(RESULT_KEYS - result.keys())
    if lacking:
        raise HalpError(f"the result of {run.root} is broken", f"it lacks {lacking[0]}", "run it again with --fresh")
    return result


def is_sparse(result: dict[str, Any]) -> bool:
    """Whether a result is of a training to a sparsity; see `halp_iee.run.sparse`."""
    return "sparsity_by_layer" in result


def dense_network(result: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    """The network that a run began with, its weights random, and an example of its input.

    Raises:
        UsageError: the network's constructor cannot be found any more.
    """
    shape = result["input_shape"]
    if result["num_classes"] is None:
        dense = models.build(result["model"])
    else:
        dense = models.build(
            result["model"], num_classes=result["num_classes"], in_channels=shape[0], image_size=shape[-1]
        )
    generator = torch.Generator().manual_seed(int(result["seed"]))
    return dense, torch.randn(int(result["batch"]), *shape, generator=generator)


def slim_network(run: RunDirectory, result: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    """The slim network of a run and an example of its input, rebuilt from the artifact.

    Raises:
        ArtifactError: the artifact is broken, of another network, or not the one that the run wrote.
        UsageError: the network's constructor cannot be found any more.
    """
    dense, example = dense_network(result)
    model = load(run.artifact, dense).eval()
    check_unchanged(run.artifact, result)
    return model, example


def check_unchanged(path: Path, result: Mapping[str, Any]) -> None:
    """Holds a file of a run against the digest that its result notes, if it notes one.

    Raises:
        ArtifactError: it is another file now.
    """
    noted = result.get("sha256")
    digest = noted.get(path.name) if isinstance(noted, Mapping) else None
    if digest is not None and sha256(path) != digest:
        raise ArtifactError(
            f"{path} is not the one that the run measured",
            "its SHA-256 is not the one in result.json",
            "It was changed since; run the job again with --fresh",
        )
