"""The log of a run: one JSON object a line, appended and flushed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from halp_iee.errors import DataError
from halp_profiler.files import whole

if TYPE_CHECKING:
    from halp_iee.train.tensorboard import Board


class EventLog:
    """Appends events to a file; a line that a crash cut off is dropped when the log is opened again.

    Every event has `event`, its kind, and `step`, the number of finished training steps, taken from
    the attribute `step`, which the training loop keeps. One log serves one run of `fit`.

    Args:
        path: of the file; made with its folder if it is not there. None: events go nowhere.
        mirror: gets the same events, and all of them again after a rewind.

    Raises:
        DataError: the file cannot be written, or is not such a log.
    """

    def __init__(self, path: str | Path | None, mirror: Board | None = None) -> None:
        self.mirror = mirror
        self.path = None if path is None else Path(path)
        self.step = 0
        self._file: IO[str] | None = None
        self._from_before = 0  # events that an earlier session wrote
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if self.path.exists():
                    events = read(self.path)
                    self._from_before = len(events)
                    self._rewrite(events)
                self._file = self.path.open("a", encoding="utf-8")
            except OSError as error:
                raise DataError(
                    f"the event log {self.path} cannot be written", error.strerror or str(error),
                    "choose a directory that can be written to",
                ) from error  # fmt: skip

    def log(self, event: str, **fields: Any) -> None:
        """Append one event; `fields` must be what JSON can hold. Infinity and NaN become null."""
        if self._file is not None:
            record = _plain({"event": event, "step": self.step, **fields})
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
            if self.mirror is not None:
                self.mirror.write(record)

    def rewind(self, step: int | None) -> None:
        """Make the log what it was after `step` finished steps; the resumed run logs the rest again.

        Events of this session are dropped: setting the run up again has repeated them. With None
        the run begins anew, and it is the events of earlier sessions that are dropped.
        """
        self.step = step or 0
        if self.path is None or self._file is None:
            return
        self._file.close()
        events = read(self.path)
        old, new = events[: self._from_before], events[self._from_before :]
        kept = new if step is None else [event for event in old if event["step"] <= step]
        self._rewrite(kept)
        if self.mirror is not None:
            self.mirror.begin(kept)
        self._from_before = 0
        self._file = self.path.open("a", encoding="utf-8")

    def _rewrite(self, events: list[dict[str, Any]]) -> None:
        assert self.path is not None
        with whole(self.path) as new:
            new.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self.mirror is not None:
            self.mirror.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(path: str | Path) -> list[dict[str, Any]]:
    """All events of a log.

    Raises:
        DataError: a line other than the last is not an event.
    """
    return list(_events(Path(path)))


def _events(path: Path) -> Iterator[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            event = json.loads(line)
            if not isinstance(event["event"], str) or not isinstance(event["step"], int):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            if number == len(lines):
                return  # no newline after it: the writer was cut off
            raise DataError(
                f"{path} is not an event log", f"line {number} is not an event", "move the file away"
            ) from None
        yield event


def _plain(value: Any) -> Any:
    """The value with numpy's and torch's scalars and arrays as Python's, and null for what JSON cannot say."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
