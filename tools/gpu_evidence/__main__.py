"""Runs the parts one after another, each in a process of its own with a time of its own, and sums them up.

    tools/gpu_evidence.sh OUT [--seconds 510] [--only NAME ...] [--tiny]

Every part writes rows as it measures them, so what a part had found before it failed or ran out of time is kept. A part
that fails is one line in the summary. The parts are forked from a process that has imported torch but never
touched the GPU: importing it again for each would take a minute of the nine.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from gpu_evidence import words
from gpu_evidence.part import Part

_LEAST_S = 8.0
"""A part is not begun with less than this left."""


@dataclass(frozen=True)
class Planned:
    """A part, the seconds that it may take on a GPU, and where it is.

    Attributes:
        module, function: imported in the part's own process, so that what cannot be imported costs this part alone.
    """

    name: str
    seconds: float
    module: str
    function: str
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, part: Part) -> None:
        getattr(import_module(f"gpu_evidence.{self.module}"), self.function)(part, **self.options)


def _on_table(what: str, seconds: float, batch: int, precision: str) -> Planned:
    setting = {"batch": batch, "precision": precision}
    return Planned(f"{what}-b{batch}-{precision}", seconds, "tables", what, setting)


def plan() -> list[Planned]:
    """The most telling parts first: what comes last is what is cut when the time is short."""
    return [
        Planned("environment", 40, "environment", "environment"),
        _on_table("sweep", 120, 256, "fp16"),
        _on_table("predicted", 105, 256, "fp16"),
        _on_table("solved", 55, 256, "fp16"),
        Planned("training", 65, "training", "training"),
        Planned("layers", 42, "layers", "layers"),
        _on_table("sweep", 45, 1, "fp32"),
        _on_table("sweep", 45, 256, "tf32"),
        _on_table("sweep", 50, 256, "fp32"),
        _on_table("sweep", 36, 1, "tf32"),
        _on_table("sweep", 36, 1, "fp16"),
        _on_table("predicted", 45, 1, "fp32"),
        _on_table("solved", 30, 1, "fp32"),
        Planned("iee", 60, "training", "iee"),
    ]


def tiny_plan() -> list[Planned]:
    """The same code on a small network, for a test on a CPU."""
    return [
        Planned("environment", 20, "environment", "environment"),
        _on_table("sweep", 12, 1, "fp32"),
        _on_table("predicted", 30, 1, "fp32"),
        _on_table("solved", 30, 1, "fp32"),
        Planned("training", 20, "training", "training"),
        Planned("layers", 20, "layers", "layers"),
        Planned("iee", 40, "training", "iee"),
    ]


def preload() -> None:
    """Import what the parts need before they are forked; what is missing is theirs to tell."""
    for name in (
        "torch",
        "torchvision",
        *(f"gpu_evidence.{m}" for m in ("environment", "tables", "training", "layers")),
    ):
        with contextlib.suppress(Exception):
            import_module(name)


def in_child(one: Planned, out: Path, seconds: float, tiny: bool, cpu: bool) -> None:
    """What a part's process does; it leads a process group, so that what it starts ends with it."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    log = os.open(out / "parts" / f"{one.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        import torch

        cuda = not cpu and torch.cuda.is_available()
        if not cuda:
            torch.set_num_threads(1)  # as the tables are measured
        one.run(Part(one.name, out, seconds, tiny, cuda))
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        (out / "parts" / f"{one.name}.error").write_text(_one_line(error) + "\n", encoding="utf-8")
        os._exit(1)
    os._exit(0)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{at}"


def run_part(one: Planned, out: Path, seconds: float, tiny: bool, cpu: bool) -> words.Ended:
    """Run it to its end or the end of its time."""
    context = multiprocessing.get_context("fork")
    since = time.monotonic()
    process = context.Process(target=in_child, args=(one, out, seconds, tiny, cpu))
    process.start()
    process.join(seconds)
    late = process.is_alive()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        assert process.pid is not None, "it was started"
        os.killpg(process.pid, signal.SIGKILL)
    process.join(10)
    took = time.monotonic() - since
    error = out / "parts" / f"{one.name}.error"
    if late:
        why = f"cut off after {seconds:.0f} s; the rows until then are kept"
    elif process.exitcode == 0:
        why = ""
        (out / "parts" / f"{one.name}.log").unlink(missing_ok=True)
    elif error.is_file():
        why = error.read_text(encoding="utf-8").strip()
    else:
        code = process.exitcode or 0
        why = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    error.unlink(missing_ok=True)
    return words.Ended(one.name, took, why)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/gpu_evidence.sh", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--seconds", type=float, default=510.0, help="for all parts together (default: 510)")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts alone")
    parser.add_argument("--tiny", action="store_true", help="small networks and few samples; runs on a CPU too")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone that is there; with --tiny")
    asked = parser.parse_args()
    until = time.monotonic() + asked.seconds
    parts = tiny_plan() if asked.tiny else plan()
    if asked.only:
        known = [one.name for one in parts]
        if wrong := [name for name in asked.only if name not in known]:
            parser.error(f"no part is called {wrong[0]!r}; there are {', '.join(known)}")
        parts = [one for one in parts if one.name in asked.only or one.name == "environment"]
    for folder in ("parts", "tables"):
        (asked.out / folder).mkdir(parents=True, exist_ok=True)
    for one in parts:  # what an earlier call found is not mixed with what this one finds
        (asked.out / "parts" / f"{one.name}.jsonl").unlink(missing_ok=True)
    preload()
    ended: list[words.Ended] = []
    for one in parts:
        left = until - time.monotonic()
        if left < _LEAST_S:
            ended.append(words.Ended(one.name, 0.0, "not begun: the time was used up"))
        else:
            ended.append(run_part(one, asked.out, min(one.seconds, left), asked.tiny, asked.cpu))
        words.write(asked.out, ended)
        print(f"{ended[-1].name:<22}{ended[-1].seconds:6.1f} s  {ended[-1].why or 'done'}", flush=True)
        if one.name == "environment" and not asked.tiny and not words.has_gpu(asked.out):
            print("There is no GPU that torch can use; --tiny tries the parts on the processor.", file=sys.stderr)
            return 3
    print(f"{asked.out}/evidence.md and evidence.json")
    return 1 if any(one.why for one in ended) else 0


if __name__ == "__main__":
    sys.exit(main())
