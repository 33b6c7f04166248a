"""What a finished sweep notes of itself in its table, so that a later call knows whether anything is left to do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from halp_profiler.kernel import KernelRange


def digest(ranges: Sequence[KernelRange]) -> str:
    """A name of what is to be measured, the same in any order."""
    lines = sorted(f"{r.kernel.key} {r.c_in} {r.c_out}" for r in ranges)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def number(record: Mapping[str, Any], name: str) -> float:
    """A number of a record; nan where it has none of that name."""
    value = record.get(name)
    return float(value) if isinstance(value, int | float) else float("nan")


def done(sweeps: Sequence[Mapping[str, Any]], asked: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """An earlier sweep that did all that is asked for, or had as much time for it as there is now."""
    for sweep in reversed(sweeps):
        if sweep.get("plan") != asked["plan"] or sweep.get("mode") != asked["mode"]:
            continue
        before, now = number(sweep, "time_budget_s"), asked["time_budget_s"]
        had_the_time = now is not None and before >= now
        if number(sweep, "max_error") <= asked["max_error"] and (sweep.get("complete") is True or had_the_time):
            return sweep
    return None
