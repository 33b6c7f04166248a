"""Which devices there are: this processor, the GPUs attached to it, and those known from their datasheets."""

from __future__ import annotations

import difflib
import os
import platform
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from halp_profiler import nvml
from halp_profiler.datasheet import DATASHEETS, Datasheet
from halp_profiler.errors import DeviceError, UsageError
from halp_profiler.watch import affinity, ranges

_NOISE_WORDS = (
    "nvidia", "geforce", "tesla", "jetson", "agx", "sxm", "sxm2", "sxm4", "sxm5", "pcie", "nvl", "hbm3",
    "16gb", "32gb", "40gb", "64gb", "80gb",
)  # fmt: skip


@dataclass(frozen=True)
class Device:
    """A device that a table can be for.

    Attributes:
        name: short name, as typed: ``cpu``, ``cuda:0``, ``titanv``.
        label: the maker's name.
        kind: ``cpu`` or ``cuda``.
        attached: whether it is in this machine, so that it can be measured.
        datasheet: the maker's figures, where they are known.
        details: what the system says about an attached one.
        cores: of a processor, those that may be used; empty: all.
    """

    name: str
    label: str
    kind: str
    attached: bool
    datasheet: Datasheet | None = None
    details: tuple[tuple[str, Any], ...] = ()
    cores: tuple[int, ...] = ()


def attached() -> list[Device]:
    """The devices of this machine, the processor first."""
    host = host_fingerprint()
    return [Device("cpu", str(host["name"]), "cpu", True, None, tuple(host.items())), *map(_gpu, nvml.attached())]


def known() -> list[Device]:
    """The devices that can be modelled from their datasheets."""
    return [Device(d.name, d.label, "cuda", False, d) for d in DATASHEETS.values()]


def find(name: str) -> Device:
    """The device of that name: an attached one first, else one from the datasheets.

    ``cpu:0-3,8`` is the processor with these cores only. Case, blanks, hyphens and the maker's name do not matter:
    ``titanv``, ``TITAN V`` and ``nvidia-titan-v`` are one.

    Raises:
        UsageError: no device is known by this name; the nearest known names are in it.
        DeviceError: an attached GPU was asked for by number, and it is not there.
    """
    here = attached()
    wanted = _plain(name)
    if name.strip().lower().startswith("cpu:"):
        return _with_cores(here[0], name.strip()[4:])
    if wanted in ("cpu", "host"):
        return here[0]
    for device in here[1:]:
        if wanted in (_plain(device.name), _plain(device.label)):
            return device
    if re.fullmatch(r"(cuda|gpu)\d*", wanted):
        if len(here) > 1 and wanted in ("cuda", "gpu"):
            return here[1]
        raise DeviceError(
            f"The device {name!r} is not there",
            nvml.missing() or f"this machine has {', '.join(d.name for d in here)}",
            "pip install nvidia-ml-py, and NVIDIA's driver; or name a device for which a table can be modelled",
        )
    for device in known():
        if wanted in (_plain(device.name), _plain(device.label)):
            return device
    names = [d.name for d in here] + [d.name for d in known()]
    near = difflib.get_close_matches(wanted, names, 3, 0.5)
    raise UsageError(
        f"No device is known as {name!r}",
        f"known are {', '.join(names)}",
        f"Did you mean {' or '.join(near)}" if near else "Name one of these; `halp-iee devices` lists them",
    )


def names_of(text: str) -> list[str]:
    """The devices of a list such as ``cuda:0,cuda:1`` or ``cpu:0-3;cpu:4-7`` (``cpu:0,cpu:1`` are two as well)."""
    return [part.strip(" ,") for part in re.split(r";|,(?=\s*[A-Za-z])", text) if part.strip(" ,")]


def use_cores(device: Device) -> None:
    """Keeps this process to the cores of ``device``, where it names some."""
    if device.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, device.cores)


def _with_cores(host: Device, text: str) -> Device:
    cores: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part)
        found = range(int(ends[1]), int(ends[2] or ends[1]) + 1) if ends else range(0)
        if not found:
            raise UsageError(f"No cores are known as {text!r}", f"{part!r} names none", "Write cpu:0 or cpu:0-3,8")
        cores.update(found)
    if absent := cores - affinity():
        why = f"this process may use {ranges(affinity())}"
        raise DeviceError(f"The cores {ranges(absent)} are not there", why, "Name some of these")
    return replace(host, name=f"cpu:{ranges(cores)}", cores=tuple(sorted(cores)))


def _plain(name: str) -> str:
    text = name.lower()
    for word in _NOISE_WORDS:
        text = re.sub(rf"\b{word}\b", " ", text)
    plain = re.sub(r"[^a-z0-9]", "", text)
    return {"2080ti": "rtx2080ti", "3090": "rtx3090", "4090": "rtx4090"}.get(plain, plain)


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
    for name, label in (
        ("cpu family", "family"),
        ("model", "model"),
        ("stepping", "stepping"),
        ("cache size", "cache"),
    ):
        if name in info:
            found[label] = info[name]
    if "flags" in info:
        flags = set(info["flags"].split())
        found["vectors"] = next((v for v in ("avx512f", "avx2", "avx", "sse4_2") if v in flags), "none")
    if clock := _max_clock_mhz():
        found["max_clock_mhz"] = clock
    return found


def vector_lanes() -> int:
    """How many fp32 values this processor's vectors hold; 1 where that is not known."""
    return {"avx512f": 16, "avx2": 8, "avx": 8, "sse4_2": 4}.get(str(host_fingerprint().get("vectors")), 1)


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


def _gpu(gpu: nvml.Gpu) -> Device:
    facts = next((d for d in DATASHEETS.values() if _plain(gpu.label).startswith(_plain(d.name))), None)
    return Device(f"cuda:{gpu.index}", gpu.label, "cuda", True, facts, (("uuid", gpu.uuid), *gpu.facts))
