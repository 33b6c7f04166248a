"""The latency table on disk: one JSON-lines file, append-only, so that it is its own resume log.

The first line is the header, every other line one measured point. A last line
without its newline was cut off by a crash: it is dropped when reading and removed before the next append.
A further header is allowed where it describes the same device, so that ``cat a b`` merges two tables.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from halp_profiler.errors import TableError
from halp_profiler.files import whole
from halp_profiler.kernel import Kernel
from halp_profiler.steps import Steps

SCHEMA = 1
SOURCES = ("measured", "modelled")
_MAX_BYTES = 512 << 20
_MAX_LINE = 64 << 10
_MAX_CHANNELS = 1 << 20

PointKey = tuple[Kernel, int, int]


@dataclass(frozen=True)
class Header:
    """What a table is about.

    Attributes:
        device: fingerprint; ``name`` and ``threads`` tell devices apart, the rest informs (driver, clocks, ...).
        backend: the runtime, e.g. ``onnxruntime-cpu``.
        backend_version: of the runtime.
        precision, layout: e.g. ``fp32``, ``nchw``.
        batch: images per call.
        source: ``measured`` or ``modelled``, never anything in between.
        how: free notes: statistics, subtracted overhead, staircase steps, library versions.
    """

    device: Mapping[str, Any]
    backend: str
    backend_version: str
    precision: str
    layout: str
    batch: int
    source: str
    how: Mapping[str, Any] = field(default_factory=dict)

    def steps(self, kernel: Kernel) -> Steps:
        """The shape of the kernel's staircase on this device, as the backend recorded it."""
        recorded = self.how.get("steps")
        found = recorded.get(kernel.family) if isinstance(recorded, Mapping) else None
        return Steps.from_json(found) if isinstance(found, Mapping) else Steps()

    def identity(self) -> dict[str, Any]:
        """What two tables must share to be one."""
        return {
            "device": self.device.get("name"),
            "threads": self.device.get("threads"),
            "backend": self.backend,
            "backend_version": self.backend_version,
            "precision": self.precision,
            "layout": self.layout,
            "batch": self.batch,
            "source": self.source,
        }

    def difference(self, other: Header) -> str | None:
        """The first thing in which two identities differ, in words."""
        mine, theirs = self.identity(), other.identity()
        for name, value in mine.items():
            if theirs[name] != value:
                return f"{name.replace('_', ' ')} is {value} in one and {theirs[name]} in the other"
        return None

    def to_json(self) -> dict[str, Any]:
        return {
            "record": "header", "schema": SCHEMA, "device": dict(self.device), "backend": self.backend,
            "backend_version": self.backend_version, "precision": self.precision, "layout": self.layout,
            "batch": self.batch, "source": self.source, "how": dict(self.how),
        }  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One measured (or modelled) latency.

    Attributes:
        kernel, c_in, c_out: what ran.
        median_ms, p25_ms, p75_ms: of one execution. Never negative.
        samples: behind the quartiles; 0 for a modelled point.
        flags: e.g. ``unstable``: measured again and still unsteady.
    """

    kernel: Kernel
    c_in: int
    c_out: int
    median_ms: float
    p25_ms: float
    p75_ms: float
    samples: int
    flags: tuple[str, ...] = ()

    @property
    def key(self) -> PointKey:
        return self.kernel, self.c_in, self.c_out

    def to_json(self) -> dict[str, Any]:
        out = {
            **self.kernel.to_json(), "c_in": self.c_in, "c_out": self.c_out,
            "median_ms": _short(self.median_ms), "p25_ms": _short(self.p25_ms), "p75_ms": _short(self.p75_ms),
            "samples": self.samples,
        }  # fmt: skip
        return {**out, "flags": list(self.flags)} if self.flags else out


@dataclass(frozen=True)
class Table:
    """A table as read.

    Attributes:
        header: what it is about.
        points: one a key; of two readings the unflagged one counts, else the later.
        path: its file.
        sweeps: what finished sweeps noted of themselves: their plan, how far they came, their held-out error.
    """

    header: Header
    points: tuple[Point, ...]
    path: Path | None = None
    sweeps: tuple[Mapping[str, Any], ...] = ()

    def keys(self) -> set[PointKey]:
        return {p.key for p in self.points}


def read(path: str | Path) -> Table:
    """Reads a table; nothing in it is executed, and nothing but numbers and names is believed.

    Raises:
        TableError: missing, empty, too large, not a table, of another schema, or with an impossible value.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise _bad(path, f"it is larger than {_MAX_BYTES >> 20} MB")
        data = path.read_bytes()
    except OSError as e:
        raise _bad(path, e.strerror or str(e), "Name an existing table or measure one with `halp-iee profile`") from e
    return parse(data, path)


def parse(data: bytes, path: Path) -> Table:
    """The table that ``data`` holds; ``path`` is for its errors. Raises TableError as ``read`` does."""
    lines = data.split(b"\n")
    if lines and lines[-1]:
        lines.pop()  # cut off by a crash: everything before it is whole
    header: Header | None = None
    points: dict[PointKey, Point] = {}
    sweeps: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = _object(line, path, number)
        if header is None or record.get("record") == "header":
            found = _header(record, path, number)
            if header is not None and (why := header.difference(found)):
                raise _bad(path, f"line {number} begins another device's table: {why}")
            header = header or found
            continue
        if record.get("record") == "sweep":
            sweeps.append(record)
            continue
        _keep(points, _point(record, path, number))
    if header is None:
        raise _bad(path, "it is empty, or its first line was cut off")
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
    with _locked(path) as file:
        data = file.read()
        if b"\n" not in data:  # new, or killed within its very first line
            if data.strip() and not data.startswith(b'{"record"'):
                raise _bad(path, "it is not a latency table", "Choose another file: this one is left as it is")
            file.truncate(0)
            _write(file, path, [header.to_json()])
            return Table(header, (), path)
        table = parse(data, path)
    if why := table.header.difference(header):
        raise _bad(path, f"it is of another device or setting: {why}", "Measure into a new file: this one is kept")
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
            raise _bad(path, "its header is gone", "Measure the table again into a new file")
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
    if len(line) > _MAX_LINE:
        raise _bad(path, f"line {number} is longer than {_MAX_LINE >> 10} KB")

    def no_constants(name: str) -> float:
        raise ValueError(f"{name} is not a number")

    try:
        record = json.loads(line, parse_constant=no_constants)
    except (ValueError, RecursionError) as e:
        raise _bad(path, f"line {number} is not JSON ({str(e)[:80]})") from e
    if not isinstance(record, dict):
        raise _bad(path, f"line {number} is not a JSON object")
    return record


def _header(record: Mapping[str, Any], path: Path, number: int) -> Header:
    if record.get("record") != "header":
        raise _bad(path, f"line {number} is not a table's header")
    if record.get("schema") != SCHEMA:
        raise _bad(path, f"its schema is {str(record.get('schema'))[:20]!r} and this version reads schema {SCHEMA}")
    device, how, batch = record.get("device"), record.get("how", {}), record.get("batch")
    texts = {n: record.get(n) for n in ("backend", "backend_version", "precision", "layout", "source")}
    wrong = [n for n, v in texts.items() if not isinstance(v, str) or len(v) > 200]
    if not isinstance(device, dict) or not isinstance(device.get("name"), str):
        wrong.append("device")
    if not isinstance(how, dict):
        wrong.append("how")
    if not isinstance(batch, int) or isinstance(batch, bool) or not 1 <= batch <= 1 << 16:
        wrong.append("batch")
    if texts["source"] not in SOURCES:
        wrong.append("source")
    if wrong:
        raise _bad(path, f"the header's {wrong[0]} is missing or has an impossible value")
    assert isinstance(device, dict)
    assert isinstance(batch, int)
    return Header(device=device, batch=batch, how=how, **{n: str(v) for n, v in texts.items()})


def _point(record: Mapping[str, Any], path: Path, number: int) -> Point:
    try:
        kernel = Kernel.from_json(record)
    except TableError as e:
        raise _bad(path, f"line {number}: {e.why}") from e
    median, p25, p75 = (_latency(record, n, path, number) for n in ("median_ms", "p25_ms", "p75_ms"))
    c_in, c_out = (_whole(record, n, 1, path, number) for n in ("c_in", "c_out"))
    samples = _whole(record, "samples", 0, path, number)
    flags = record.get("flags", [])
    if not isinstance(flags, list) or not all(isinstance(f, str) for f in flags):
        raise _bad(path, f"line {number}: flags is {str(flags)[:40]!r}")
    return Point(kernel, c_in, c_out, median, p25, p75, samples, tuple(flags))


def _latency(record: Mapping[str, Any], name: str, path: Path, number: int) -> float:
    value = record.get(name)
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9
    if not fits:
        raise _bad(path, f"line {number}: {name} is {str(value)[:40]!r}, and must be a number of 0 or more")
    return float(value)  # type: ignore[arg-type]


def _whole(record: Mapping[str, Any], name: str, low: int, path: Path, number: int) -> int:
    value = record.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= _MAX_CHANNELS:
        raise _bad(path, f"line {number}: {name} is {str(value)[:40]!r}, and must be a whole number of {low} or more")
    return value


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _bad(
    path: Path, why: str, remedy: str = "Measure it again with `halp-iee profile`, or use another table"
) -> TableError:
    return TableError(f"The latency table {path} cannot be used", why, remedy)


def _unwritable(path: Path, error: OSError) -> TableError:
    return TableError(
        f"The latency table {path} cannot be written",
        error.strerror or str(error),
        "Free some space or choose a folder that can be written; what was measured before is kept",
    )
