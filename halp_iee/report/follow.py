"""Where a run stands, read from what it has written so far."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halp_iee.errors import HalpError
from halp_iee.report.text import mapping, number
from halp_iee.run.directory import read_json
from halp_iee.train.events import read


@dataclass(frozen=True)
class Training:
    """One of a run's trainings.

    Attributes:
        name: ``dense`` or ``slim``.
        epoch, epochs: finished, and of how many.
        top1: on the test set after the last epoch, where it was measured.
        loss: of the last epoch.
        epoch_s: seconds of an epoch, the mean of the last three.
        step: of the last event.
        latency_ms: of the structure after the last prune or grow, predicted.
        change: the last event of the structure in words.
    """

    name: str
    epoch: int
    epochs: int | None
    top1: float | None
    loss: float | None
    epoch_s: float | None
    step: int
    latency_ms: float | None
    change: str | None

    @property
    def left_s(self) -> float | None:
        """Seconds until its end, as the last epochs went."""
        if self.epochs is None or self.epoch_s is None:
            return None
        return max(0, self.epochs - self.epoch) * self.epoch_s


@dataclass(frozen=True)
class State:
    """A run as it stands.

    Attributes:
        config: what was asked for.
        stage: in words.
        running: whether a process is at work on it.
        trainings: those that have begun.
        target_ms: the latency asked for, once it is known.
        result: when it is finished.
    """

    config: Mapping[str, Any]
    stage: str
    running: bool
    trainings: tuple[Training, ...]
    target_ms: float | None
    result: Mapping[str, Any] | None

    @property
    def left_s(self) -> float | None:
        """Seconds of training to go; the slim training that has not begun counts as the dense one did."""
        if self.result is not None:
            return 0.0
        if not self.trainings:
            return None
        last = self.trainings[-1]
        left = last.left_s
        if left is not None and last.name == "dense" and last.epochs is not None and last.epoch_s is not None:
            left += last.epochs * last.epoch_s
        return left


def state_of(root: Path) -> State:
    """Read where a run stands.

    Raises:
        HalpError: no such directory, no run, or a log that is broken.
    """
    if not (root / "config.json").is_file():
        what = "it holds no config.json" if root.is_dir() else "it is not a directory"
        raise HalpError(f"there is no run at {root}", what, "give the directory that train or prune printed")
    config = read_json(root / "config.json", dict[str, Any])
    result = read_json(root / "result.json", dict[str, Any]) if (root / "result.json").is_file() else None
    trainings = tuple(
        _training(name, read(path), config)
        for name in ("dense", "slim")
        if (path := root / name / "events.jsonl").is_file()
    )
    return State(
        config, _stage(root, trainings, result), _locked(root), trainings, _target(root, result, trainings), result
    )


def _training(name: str, events: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Training:
    epochs = [event for event in events if event["event"] == "epoch"]
    changes = [event for event in events if event["event"] in ("start", "prune", "grow", "settle")]
    last = epochs[-1] if epochs else {}
    took = [s for event in epochs[-3:] if (s := number(event.get("seconds"))) is not None and s >= 0]
    total = number(config.get("finetune_epochs")) if name == "slim" and config.get("method") == "one-shot" else None
    total = total or number(mapping(config.get("recipe")).get("epochs"))
    change = changes[-1] if changes else None
    cycle = None if change is None else number(change.get("cycle"))
    words = None if change is None else f"{change['event']}" + ("" if cycle is None else f", cycle {cycle + 1:.0f}")
    return Training(
        name=name, epoch=int(number(last.get("epoch")) or 0), epochs=None if total is None else int(total),
        top1=number(last.get("test_top1")), loss=number(last.get("loss")),
        epoch_s=sum(took) / len(took) if took else None, step=int(events[-1]["step"]) if events else 0,
        latency_ms=None if change is None else number(change.get("latency_ms")), change=words,
    )  # fmt: skip


def _stage(root: Path, trainings: Sequence[Training], result: Mapping[str, Any] | None) -> str:
    if result is not None:
        return "finished"
    if (root / "model.onnx").is_file():
        return "measuring"
    if (root / "model.safetensors").is_file():
        return "exporting"
    if trainings:
        last = trainings[-1]
        over = last.epochs is not None and last.epoch >= last.epochs
        return f"{'after' if over else 'in'} the training of the {last.name} network"
    if (root / "calibration.json").is_file():
        return "calibrating against whole networks"
    return "making the latency table"


def _target(root: Path, result: Mapping[str, Any] | None, trainings: Sequence[Training]) -> float | None:
    if result is not None:
        return number(result.get("target_ms"))
    known = root / "calibration.json"
    if not known.is_file():
        return None
    from halp_iee.run.target import Target

    try:
        timed = read_json(known, list[dict[str, Any]])
        config = read_json(root / "config.json", dict[str, Any])
        dense_ms = number(timed[0].get("measured_ms")) if timed else None
        batch = int(mapping(config.get("device")).get("batch") or 1)
        return None if dense_ms is None else Target.parse(str(config.get("target"))).of_ms(dense_ms, batch)
    except (HalpError, ValueError, TypeError):
        return None


def _locked(root: Path) -> bool:
    """Whether another process holds the run."""
    try:
        with open(root / ".lock") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
