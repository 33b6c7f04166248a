"""A latency table as the rest of the library sees it: found by name, looked up at any width."""

from __future__ import annotations

import difflib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import halp_profiler
from halp_profiler import table as tables
from halp_profiler.devices import host_fingerprint
from halp_profiler.errors import TableError
from halp_profiler.kernel import Kernel
from halp_profiler.surface import Surface
from halp_profiler.table import Header, Point

SUFFIX = ".jsonl"


class LatencyTable:
    """Latencies of kernels on one device.

    Args:
        table: as read from its file.
    """

    def __init__(self, table: tables.Table) -> None:
        self._table = table
        self._points: dict[Kernel, list[Point]] = defaultdict(list)
        for point in table.points:
            self._points[point.kernel].append(point)
        self._surfaces: dict[Kernel, Surface] = {}

    @classmethod
    def load(cls, path_or_name: str | Path) -> LatencyTable:
        """Reads a table from a path, or finds it by name.

        A name is looked for in the folders of ``search_folders``, with and without ``.jsonl``.

        Raises:
            TableError: not found, with every place that was searched and the nearest names; or broken.
        """
        return cls(tables.read(find(path_or_name)))

    @property
    def header(self) -> Header:
        return self._table.header

    @property
    def path(self) -> Path | None:
        return self._table.path

    @property
    def source(self) -> str:
        """``measured`` or ``modelled``."""
        return self.header.source

    @property
    def device(self) -> str:
        return str(self.header.device["name"])

    @property
    def is_local(self) -> bool:
        """Whether it was measured on the processor that this runs on."""
        return self.source == "measured" and self.device == str(host_fingerprint()["name"])

    @property
    def held_out_error(self) -> float | None:
        """Median relative error on the points that the last sweep held out; None where none was noted."""
        noted = (s.get("held_out_error") for s in reversed(self._table.sweeps))
        return next((float(e) for e in noted if isinstance(e, int | float)), None)

    @property
    def threads(self) -> int | None:
        threads = self.header.device.get("threads")
        return threads if isinstance(threads, int) else None

    @property
    def batch(self) -> int:
        """Images in one call; every latency is of a whole call."""
        return self.header.batch

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return tuple(self._points)

    def points(self, kernel: Kernel) -> tuple[Point, ...]:
        """The table's points of one kernel, in the order in which they were measured."""
        return tuple(self._points.get(kernel, ()))

    def __contains__(self, kernel: object) -> bool:
        return kernel in self._points

    def __len__(self) -> int:
        return len(self._table.points)

    def surface(self, kernel: Kernel) -> Surface:
        """T(c_in, c_out) of one kernel. Raises TableError when the table does not know it."""
        if kernel not in self._surfaces:
            if kernel not in self._points:
                near = difflib.get_close_matches(kernel.key, [k.key for k in self._points], 1, 0.3)
                raise TableError(
                    f"The table {self.path or self.device} has no latency of {kernel.key}",
                    f"the nearest kernel it holds is {near[0]}" if near else "it holds nothing like it",
                    "Profile this network with `halp-iee profile`: the table grows by what is missing",
                )
            self._surfaces[kernel] = Surface(kernel, self._points[kernel], self.header.steps(kernel))
        return self._surfaces[kernel]

    def lookup(self, kernel: Kernel, c_in: np.ndarray | int, c_out: np.ndarray | int) -> np.ndarray:
        """Latency in ms of ``kernel``, interpolated; ``c_in`` and ``c_out`` broadcast.

        Raises:
            TableError: the kernel is not in the table, or a width is outside of what it covers.
        """
        return self.surface(kernel)(c_in, c_out)

    def summary(self) -> dict[str, Any]:
        """What a list of tables shows."""
        return {
            "name": self.path.stem if self.path else None, "path": str(self.path), "device": self.device,
            "backend": self.header.backend, "version": self.header.backend_version,
            "precision": self.header.precision, "batch": self.batch, "threads": self.threads,
            "source": self.source, "kernels": len(self.kernels), "points": len(self),
            "held_out_error": self.held_out_error,
        }  # fmt: skip


def search_folders() -> tuple[Path, ...]:
    """Where tables are looked for by name, first match wins: the folders in ``$HALP_LATENCY_TABLES``, the checkout's
    ``latency_tables``, the installed ones, the user's cache."""
    package = Path(halp_profiler.__file__).parent
    checkout = Path(__file__).parents[2]
    folders = [Path(p) for p in os.environ.get("HALP_LATENCY_TABLES", "").split(os.pathsep) if p]
    if (checkout / "pyproject.toml").is_file():
        folders.append(checkout / "latency_tables")
    return (*folders, package / "_tables", cache_folder())


def cache_folder() -> Path:
    """Where tables that were made here are kept when nothing else is said."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "halp-iee" / "latency_tables"


def available() -> Iterator[Path]:
    """Every table that a name can reach."""
    seen: set[str] = set()
    for folder in search_folders():
        for path in sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else ():
            if path.stem not in seen:
                seen.add(path.stem)
                yield path


def find(path_or_name: str | Path) -> Path:
    """The file that ``path_or_name`` means. Raises TableError with all places searched and the nearest names."""
    text = str(path_or_name)
    if "\0" in text or not text.strip() or len(text) > 4000:
        raise TableError("No latency table can be found", f"{text[:60]!r} is no name", "Name a table or a file")
    direct = Path(text)
    if os.path.isfile(direct):
        return direct
    folders = search_folders()
    if direct.name == text:
        for folder in folders:
            for candidate in (folder / text, folder / f"{text}{SUFFIX}"):
                if os.path.isfile(candidate):
                    return candidate
    names = [p.stem for p in available()]
    near = difflib.get_close_matches(text.removesuffix(SUFFIX), names, 3, 0.4)
    places = [str(direct.absolute()), *map(str, folders)] if direct.name == text else [str(direct.absolute())]
    raise TableError(
        f"There is no latency table {text!r}",
        "searched: " + ", ".join(places),
        (f"Did you mean {' or '.join(near)}? " if near else "") + "`halp-iee profile` makes one",
    )


def slug(*parts: object) -> str:
    """A file name of what is given: lower case, words joined by hyphens."""
    words: Iterable[str] = (re.sub(r"[^a-z0-9.]+", "-", str(p).lower()).strip("-.") for p in parts if p)
    return "-".join(w for w in words if w)[:120] or "table"
