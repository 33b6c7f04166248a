"""Looks at the processor while it is timed: was it ours alone?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

BUSY = "busy"
"""Flag of a point during which another process had the device."""

_TOLERANCE = 0.15  # of a core: what the system itself takes now and then
_TICK_S = 0.01  # /proc/stat counts in these, and may be off by one on every core


class CpuWatch:
    """Sees whether other processes competed for the cores that this one may use.

    Others' CPU time on these cores (a hypervisor's stolen time included) is all that was spent there less this
    process's own. As long as it fits into the cores that the runtime's threads leave free it disturbs nobody.

    Args:
        threads: of the runtime.
        cores: which count; None: those that this process may run on.
        spent_s: seconds that the given cores were busy since the start of the machine; None where unknown.
        own_s: CPU seconds of this process.
        wall_s: a clock.
    """

    def __init__(
        self,
        threads: int,
        *,
        cores: Collection[int] | None = None,
        spent_s: Callable[[Collection[int]], float | None] | None = None,
        own_s: Callable[[], float] = time.process_time,
        wall_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cores = frozenset(affinity() if cores is None else cores)
        self._free = max(0, len(self._cores) - threads)
        self._spent_s, self._own_s, self._wall_s = spent_s or core_seconds, own_s, wall_s
        self._begun: tuple[float | None, float, float] = (None, 0.0, 0.0)

    def start(self) -> None:
        self._begun = self._spent_s(self._cores), self._own_s(), self._wall_s()

    def stop(self) -> tuple[str, ...]:
        """``("busy",)`` where others had more than the cores that were left to them."""
        before, own, wall = self._begun
        after = self._spent_s(self._cores)
        if before is None or after is None:
            return ()
        seconds = self._wall_s() - wall
        others = after - before - (self._own_s() - own) - _TICK_S * len(self._cores)
        return (BUSY,) if others > (self._free + _TOLERANCE) * seconds else ()

    def facts(self) -> dict[str, Any]:
        """What a table's header says of the processor's state when the sweep began."""
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        found = {"affinity": ranges(self._cores), "clock_mhz": clock_mhz(self._cores), "governor": _governor(),
                 "load_1_min": None if load is None else round(load, 2)}  # fmt: skip
        return {name: value for name, value in found.items() if value is not None}


def affinity() -> frozenset[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def core_seconds(cores: Collection[int], stat: Path = Path("/proc/stat")) -> float | None:
    """Seconds that ``cores`` were busy, by whomever; None where the system does not tell."""
    try:
        lines = stat.read_text().splitlines()
        tick = 1 / os.sysconf("SC_CLK_TCK")
        total = 0
        for line in lines:
            name, *counts = line.split()
            if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
                user, nice, system, _idle, _wait, irq, soft, steal = (int(c) for c in counts[:8])
                total += user + nice + system + irq + soft + steal
    except (OSError, ValueError):
        return None
    return total * tick


def clock_mhz(cores: Collection[int]) -> int | None:
    """Mean clock of ``cores`` right now, where the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return None
    found = [float(line.split(":")[1]) for line in text.splitlines() if line.startswith("cpu MHz")]
    mine = [mhz for core, mhz in enumerate(found) if core in cores]
    return round(sum(mine) / len(mine)) if mine else None


def _governor() -> str | None:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None


def ranges(cores: Collection[int]) -> str:
    """``{0, 1, 2, 5}`` as ``0-2,5``."""
    parts: list[list[int]] = []
    for core in sorted(cores):
        if parts and core == parts[-1][-1] + 1:
            parts[-1].append(core)
        else:
            parts.append([core])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
