"""The latency table on disk: one JSON-lines file, append-only, so that it is its own resume log.

The first line is the header, every other line one measured point. A last line
without its newline was cut off by a crash: it is dropped when reading and removed before the next append.
A further header is allowed where it describes the same device, so that ``cat a b`` merges two tables.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from halp_profiler.errors import TableError
from halp_profiler.files import whole
from halp_profiler.records import Header, Point, PointKey, Table, bad_table, header_of, point_of

_MAX_BYTES = 512 << 20
_MAX_LINE = 64 << 10


def read(path: str | Path) -> Table:
    """Reads a table; nothing in it is executed, and nothing but numbers and names is believed.

    Raises:
        TableError: missing, empty, too large, not a table, of another schema, or with an impossible value.
    """
    path = Path(path)
    remedy = "Name an existing table or measure one with `halp-iee profile`"
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise bad_table(path, "it is no ordinary file", remedy)
        if found.st_size > _MAX_BYTES:
            raise bad_table(path, f"it is larger than {_MAX_BYTES >> 20} MB")
        with path.open("rb") as file:
            return _parsed(_lines(file, path), path)
    except OSError as e:
        raise bad_table(path, e.strerror or str(e), remedy) from e


def _lines(file: IO[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    """Its whole lines, numbered; one that a crash cut off at the end is left out."""
    for number in itertools.count(1):
        line = file.readline(_MAX_LINE + 1)
        if len(line) > _MAX_LINE:
            raise bad_table(path, f"line {number} is longer than {_MAX_LINE >> 10} KB")
        if not line.endswith(b"\n"):
            return
        if line.strip():
            yield number, line


def _parsed(lines: Iterable[tuple[int, bytes]], path: Path) -> Table:
    header: Header | None = None
    points: dict[PointKey, Point] = {}
    sweeps: list[Mapping[str, Any]] = []
    for number, line in lines:
        record = _object(line, path, number)
        if header is None or record.get("record") == "header":
            found = header_of(record, path, number)
            if header is not None and (why := header.difference(found)):
                raise bad_table(path, f"line {number} begins another device's table: {why}")
            header = header or found
            continue
        if record.get("record") == "sweep":
            sweeps.append(record)
            continue
        _keep(points, point_of(record, path, number))
    if header is None:
        raise bad_table(path, "it is empty, or its first line was cut off")
    return Table(header, tuple(points.values()), path, tuple(sweeps))


def _keep(points: dict[PointKey, Point], new: Point) -> None:
    """Of two readings of one point the one with fewer flags stays; the later of equals."""
    known = points.get(new.key)
    if known is None or len(new.flags) <= len(known.flags):
        points[new.key] = new


def create_or_check(path: str | Path, header: Header) -> Table:
    """The table at ``path``, made with ``header`` when there is none yet.

    Raises:
        TableError: the file there is broken or of another device; it is left as it is.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise _unwritable(path, e) from e
    new = not path.exists()
    with _locked(path) as file:
        start = file.read(_MAX_LINE)
        if b"\n" not in start and len(start) < _MAX_LINE:  # new, or killed within its very first line
            if start.strip() and not start.startswith(b'{"record"'):
                raise bad_table(path, "it is not a latency table", "Choose another file: this one is left as it is")
            try:
                file.truncate(0)
                _write(file, path, [header.to_json()])
            except (OSError, TableError):
                if new:
                    path.unlink(missing_ok=True)
                raise
            return Table(header, (), path)
        table = read(path)
    if why := table.header.difference(header):
        raise bad_table(path, f"it is of another device or setting: {why}", "Measure into a new file: this one is kept")
    return table


def append(path: str | Path, points: Iterable[Point]) -> None:
    """Adds points under a lock, after whatever a crash left of the last line is removed.

    Raises:
        TableError: the disk is full or the file cannot be written; what was there is kept.
    """
    _append(Path(path), [p.to_json() for p in points])


def append_sweep(path: str | Path, note: Mapping[str, Any]) -> None:
    """Adds what a finished sweep has to say of itself. Raises TableError as ``append`` does."""
    _append(Path(path), [{"record": "sweep", **note}])


def _append(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    with _locked(path) as file:
        end = file.seek(0, os.SEEK_END)
        if end == 0:
            raise bad_table(path, "its header is gone", "Measure the table again into a new file")
        whole = _end_of_last_line(file, end)
        if whole < end:
            file.truncate(whole)
        _write(file, path, records)


def merge(paths: Sequence[str | Path], out: str | Path) -> Table:
    """Writes one table from several of one device, in one step.

    Raises:
        TableError: the tables differ in device or setting, or one of them is broken.
    """
    tables = [read(p) for p in paths]
    if not tables:
        raise TableError("No tables can be merged", "none was named", "Name two tables or more")
    header = tables[0].header
    points: dict[PointKey, Point] = {}
    for table in tables:
        if why := header.difference(table.header):
            raise TableError(f"{tables[0].path} and {table.path} cannot be merged", why, "Merge tables of one device")
        for point in table.points:
            _keep(points, point)
    sweeps = tuple(s for table in tables for s in table.sweeps)
    merged = Table(header, tuple(points.values()), Path(out), sweeps)
    write(merged, out)
    return merged


def write(table: Table, path: str | Path) -> None:
    """Writes a whole table in one step: the old file stands until the new one is complete.

    Raises:
        TableError: the file cannot be written.
    """
    path = Path(path)
    records = [table.header.to_json(), *(p.to_json() for p in table.points), *table.sweeps]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as new:
            new.write_bytes(b"".join(_line(record) for record in records))
    except OSError as e:
        raise _unwritable(path, e) from e


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """The file, open for reading and writing, that no other process is changing."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as e:
        raise _unwritable(path, e) from e
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        try:
            import fcntl
        except ImportError:  # Windows: an open for writing is already exclusive enough for one process
            yield file
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file  # closing the file releases the lock, whatever happens


def _write(file: IO[bytes], path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    start = file.seek(0, os.SEEK_END)
    data = memoryview(b"".join(_line(r) for r in records))
    try:
        while data:
            data = data[file.write(data) :]
        os.fsync(file.fileno())
    except OSError as e:
        with contextlib.suppress(OSError):
            file.truncate(start)
        raise _unwritable(path, e) from e


def _end_of_last_line(file: IO[bytes], end: int) -> int:
    position = end
    while position > 0:
        step = min(position, 4096)
        file.seek(position - step)
        found = file.read(step).rfind(b"\n")
        if found >= 0:
            return position - step + found + 1
        position -= step
    return 0


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    def no_constants(name: str) -> float:
        raise ValueError(f"{name} is not a number")

    try:
        record = json.loads(line, parse_constant=no_constants)
    except (ValueError, RecursionError) as e:
        raise bad_table(path, f"line {number} is not JSON ({str(e)[:80]})") from e
    if not isinstance(record, dict):
        raise bad_table(path, f"line {number} is not a JSON object")
    return record


def _unwritable(path: Path, error: OSError) -> TableError:
    return TableError(
        f"The latency table {path} cannot be written",
        error.strerror or str(error),
        "Free some space or choose a folder that can be written; what was measured before is kept",
    )
