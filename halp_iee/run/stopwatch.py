"""How long a run has taken, over all the calls that it took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from pydantic import Field

from halp_iee.progress import Progress, Task
from halp_iee.run.directory import RunDirectory, read_json, write_json

_EVERY_S = 2.0
_Seconds = dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]


class Stopwatch:
    """Adds this call's seconds to those of the calls before it.

    What has passed is written down every two seconds, as the work reports its progress, so a run that is
    killed loses no more than that.

    Args:
        run: the run's directory, where `seconds.json` lies.
        shown: where progress goes; the stopwatch stands in for it.
    """

    def __init__(self, run: RunDirectory, shown: Progress) -> None:
        self.run, self.shown = run, shown
        self.before_s = read_json(run.seconds, _Seconds).get("wall", 0.0) if run.seconds.exists() else 0.0
        self.started = self.written = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.before_s + time.monotonic() - self.started

    def tick(self) -> None:
        """Write down what has passed, if it has not just been done."""
        if time.monotonic() - self.written > _EVERY_S:
            write_json(self.run.seconds, {"wall": self.seconds})
            self.written = time.monotonic()

    @contextmanager
    def task(self, name: str, total: float | None = None) -> Iterator[Task]:
        with self.shown.task(name, total) as task:
            yield _Watched(task, self)
        self.tick()

    def say(self, line: str) -> None:
        self.shown.say(line)


class _Watched:
    def __init__(self, task: Task, watch: Stopwatch) -> None:
        self.inner, self.watch = task, watch

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        self.inner.update(done, total, note)
        self.watch.tick()
