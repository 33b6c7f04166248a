"""What is to be measured, as a file that travels to the device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halp_profiler.errors import HalpError, TableError
from halp_profiler.files import whole
from halp_profiler.kernel import KernelRange

SCHEMA = 1
_MAX_BYTES = 64 << 20
_MAX_RANGES = 100_000


@dataclass(frozen=True)
class Plan:
    """A sweep that some machine is to measure.

    Attributes:
        ranges: kernels and the widths at which they are needed.
        device: name of the device.
        threads, batch, precision: how it will run.
        max_error, time_budget_s: see ``sweep.run``.
        backend, layout, l2: how it will run, see ``backends.backend_for``; None: the device's own choice.
    """

    ranges: tuple[KernelRange, ...]
    device: str = "cpu"
    threads: int = 1
    batch: int = 1
    precision: str = "fp32"
    max_error: float = 0.02
    time_budget_s: float | None = None
    backend: str | None = None
    layout: str | None = None
    l2: str | None = None


def write(plan: Plan, path: str | Path) -> None:
    """Writes a plan in one step. Raises TableError where the file cannot be written."""
    path = Path(path)
    data: dict[str, Any] = {"record": "sweep", "schema": SCHEMA}
    data |= {name: value for name, value in vars(plan).items() if value is not None}
    data["ranges"] = [r.to_json() for r in plan.ranges]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as waiting:
            waiting.write_text(json.dumps(data, indent=1) + "\n")
    except OSError as e:
        raise TableError(f"The sweep {path} cannot be written", e.strerror or str(e), "Choose another folder") from e


def read(path: str | Path) -> Plan:
    """Reads a plan. Raises TableError where it is missing or is not what ``write`` writes."""
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise _bad(path, f"it is larger than {_MAX_BYTES >> 20} MB")
        data = json.loads(path.read_bytes())
    except OSError as e:
        raise _bad(path, e.strerror or str(e)) from e
    except (ValueError, RecursionError) as e:
        raise _bad(path, f"it is not JSON ({str(e)[:80]})") from e
    if not isinstance(data, dict) or data.get("record") != "sweep" or data.get("schema") != SCHEMA:
        raise _bad(path, f"it is not a sweep of schema {SCHEMA}")
    ranges = data.get("ranges")
    if not isinstance(ranges, list) or not 0 < len(ranges) <= _MAX_RANGES:
        raise _bad(path, "it names no kernels")
    try:
        found = tuple(KernelRange.from_json(r) for r in ranges)
    except HalpError as e:
        raise _bad(path, e.why) from e
    except (AttributeError, TypeError) as e:
        raise _bad(path, "an entry is no JSON object") from e
    return Plan(found, **_settings(path, data))


def _settings(path: Path, data: dict[str, Any]) -> dict[str, Any]:
    kinds: Sequence[tuple[str, type | tuple[type, ...], float]] = (
        ("device", str, 0), ("threads", int, 1), ("batch", int, 1), ("precision", str, 0),
        ("max_error", (int, float), 0), ("time_budget_s", (int, float), 0),
        ("backend", str, 0), ("layout", str, 0), ("l2", str, 0),
    )  # fmt: skip
    out = {}
    for name, kind, low in kinds:
        value = data.get(name)
        if value is None:
            continue
        fits = isinstance(value, kind) and not isinstance(value, bool)
        if not fits or (isinstance(value, int | float) and value < low):
            raise _bad(path, f"{name} is {str(value)[:40]!r}")
        out[name] = value
    return out


def _bad(path: Path, why: str) -> TableError:
    return TableError(f"The sweep {path} cannot be used", why, "Write it again with `halp-iee profile --emit`")
