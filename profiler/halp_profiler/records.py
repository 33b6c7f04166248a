"""What a latency table consists of: a header, points, and what becomes of them when they are read from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halp_profiler.errors import TableError
from halp_profiler.kernel import Kernel
from halp_profiler.steps import Steps

SCHEMA = 1
SOURCES = ("measured", "modelled")
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
            "L2 state": self.how.get("l2"),
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


def header_of(record: Mapping[str, Any], path: Path, number: int) -> Header:
    if record.get("record") != "header":
        raise bad_table(path, f"line {number} is not a table's header")
    if record.get("schema") != SCHEMA:
        raise bad_table(
            path, f"its schema is {str(record.get('schema'))[:20]!r} and this version reads schema {SCHEMA}"
        )
    device, how, batch = record.get("device"), record.get("how", {}), record.get("batch")
    texts = {n: record.get(n) for n in ("backend", "backend_version", "precision", "layout", "source")}
    wrong = [n for n, v in texts.items() if not _is_name(v)]
    if not isinstance(device, dict) or not _is_name(device.get("name")):
        wrong.append("device")
    if not isinstance(how, dict):
        wrong.append("how")
    if not isinstance(batch, int) or isinstance(batch, bool) or not 1 <= batch <= 1 << 16:
        wrong.append("batch")
    if texts["source"] not in SOURCES:
        wrong.append("source")
    if wrong:
        raise bad_table(path, f"the header's {wrong[0]} is missing or has an impossible value")
    assert isinstance(device, dict)
    assert isinstance(batch, int)
    return Header(device=device, batch=batch, how=how, **{n: str(v) for n, v in texts.items()})


def point_of(record: Mapping[str, Any], path: Path, number: int) -> Point:
    try:
        kernel = Kernel.from_json(record)
    except TableError as e:
        raise bad_table(path, f"line {number}: {e.why}") from e
    median, p25, p75 = (_latency(record, n, path, number) for n in ("median_ms", "p25_ms", "p75_ms"))
    c_in, c_out = (_whole(record, n, 1, path, number) for n in ("c_in", "c_out"))
    samples = _whole(record, "samples", 0, path, number)
    flags = record.get("flags", [])
    if not isinstance(flags, list) or len(flags) > 16 or not all(map(_is_name, flags)):
        raise bad_table(path, f"line {number}: flags is {str(flags)[:40]!r}")
    return Point(kernel, c_in, c_out, median, p25, p75, samples, tuple(flags))


def _latency(record: Mapping[str, Any], name: str, path: Path, number: int) -> float:
    value = record.get(name)
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9
    if not fits:
        raise bad_table(path, f"line {number}: {name} is {str(value)[:40]!r}, and must be a number of 0 or more")
    return float(value)  # type: ignore[arg-type]


def _whole(record: Mapping[str, Any], name: str, low: int, path: Path, number: int) -> int:
    value = record.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= _MAX_CHANNELS:
        raise bad_table(
            path, f"line {number}: {name} is {str(value)[:40]!r}, and must be a whole number of {low} or more"
        )
    return value


def _is_name(value: Any) -> bool:
    """Whether it may be shown on a terminal: a hostile file might hold escape sequences."""
    return isinstance(value, str) and len(value) <= 200 and value.isprintable()


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def bad_table(
    path: Path, why: str, remedy: str = "Measure it again with `halp-iee profile`, or use another table"
) -> TableError:
    """The error of a table that is not what it should be."""
    return TableError(f"The latency table {path} cannot be used", why, remedy)
