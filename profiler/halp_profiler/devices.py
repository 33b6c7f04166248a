"""Which device this is, and which are attached."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def host_fingerprint() -> dict[str, Any]:
    """This machine's processor, as far as the system tells."""
    info = _cpuinfo()
    found: dict[str, Any] = {
        "name": info.get("model name") or info.get("Model") or platform.processor() or platform.machine(),
        "kind": "cpu",
        "machine": platform.machine(),
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    for name, label in (("cpu family", "family"), ("model", "model"), ("stepping", "stepping"), ("cache size", "cache")):
        if name in info:
            found[label] = info[name]
    if "flags" in info:
        flags = set(info["flags"].split())
        found["vectors"] = next((v for v in ("avx512f", "avx2", "avx", "sse4_2") if v in flags), "none")
    if clock := _max_clock_mhz():
        found["max_clock_mhz"] = clock
    return found


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return {}
    first = text.split("\n\n", 1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _max_clock_mhz() -> int | None:
    try:
        return int(Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").read_text()) // 1000
    except (OSError, ValueError):
        return None
