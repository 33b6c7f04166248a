"""Progress on stderr: a rich bar with an ETA at a terminal, sparse plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from halp_iee.progress import Task

if TYPE_CHECKING:
    from rich.progress import Progress as RichBars


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 100 else f"{value / 60:.1f} min"


class _PlainTask:
    """Says where a task stands when a fifth of it, or ten seconds, have passed since the last line."""

    def __init__(self, name: str, total: float | None) -> None:
        self.name, self.total = name, total
        self.start = self.last = time.monotonic()
        self.last_share = 0.0

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        self.total = total if total is not None else self.total
        if not self.total:
            return
        now, share = time.monotonic(), max(self.last_share, done / self.total)  # a total that grows is no step back
        if 0 < share < 1 and (now - self.last >= 10.0 or (share - self.last_share >= 0.2 and now - self.last >= 2.0)):
            eta = (now - self.start) * (1 - share) / share
            print(
                f"{self.name}: {share:4.0%}, about {_seconds(eta)} to go {note}".rstrip(), file=sys.stderr, flush=True
            )
            self.last, self.last_share = now, share


class _RichTask:
    def __init__(self, bars: RichBars, name: str, total: float | None) -> None:
        self.bars, self.id = bars, bars.add_task(name, total=total, note="")

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        if total is not None:
            self.bars.update(self.id, completed=done, total=total, note=note)
        else:
            self.bars.update(self.id, completed=done, note=note)


class Bars:
    """The command line's progress."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.terminal = sys.stderr.isatty()

    def say(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, name: str, total: float | None = None) -> Iterator[Task]:
        start = time.monotonic()
        if self.quiet or not self.terminal:
            task = _PlainTask(name, total)
            if self.quiet:
                task.update = lambda *_, **__: None  # type: ignore[method-assign]
            yield task
        else:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.percentage:3.0f}%"),
                TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            )  # fmt: skip
            with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
                yield _RichTask(bars, name, total)
        self.say(f"{name}: done in {_seconds(time.monotonic() - start)}")
