"""How long work tells that it goes on: a protocol, and the silent form of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One bar."""

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Report that `done` of `total` is done; `note` is a short word on the state."""


class Progress(Protocol):
    """Something that shows tasks."""

    def task(self, name: str, total: float | None = None) -> AbstractContextManager[Task]:
        """A context manager that gives a Task."""
        ...

    def say(self, line: str) -> None:
        """Show one line for good."""


class Silent:
    """Shows nothing; the default in Python."""

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Nothing is shown."""

    @contextmanager
    def task(self, name: str, total: float | None = None) -> Iterator[Task]:
        yield self

    def say(self, line: str) -> None:
        """Nothing is shown."""
