"""Which devices there are: this processor, the GPUs attached to it, and those known from their datasheets."""

from __future__ import annotations

import difflib
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halp_profiler.datasheet import DATASHEETS, Datasheet
from halp_profiler.errors import DeviceError, UsageError

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
    """

    name: str
    label: str
    kind: str
    attached: bool
    datasheet: Datasheet | None = None
    details: tuple[tuple[str, Any], ...] = ()


def attached() -> list[Device]:
    """The devices of this machine, the processor first."""
    host = host_fingerprint()
    return [Device("cpu", str(host["name"]), "cpu", True, None, tuple(host.items())), *_nvidia_gpus()]


def known() -> list[Device]:
    """The devices that can be modelled from their datasheets."""
    return [Device(d.name, d.label, "cuda", False, d) for d in DATASHEETS.values()]


def find(name: str) -> Device:
    """The device of that name: an attached one first, else one from the datasheets.

    Case, blanks, hyphens and the maker's name do not matter: ``titanv``, ``TITAN V`` and ``nvidia-titan-v`` are one.

    Raises:
        UsageError: no device is known by this name; the nearest known names are in it.
        DeviceError: an attached GPU was asked for by number, and it is not there.
    """
    here = attached()
    wanted = _plain(name)
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
            f"this machine has {', '.join(d.name for d in here)}",
            "Attach it, or name a device for which a table can be modelled",
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


def _nvidia_gpus() -> list[Device]:
    """Attached NVIDIA GPUs as the driver's management library sees them; no CUDA context is made."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_nvidia_gpu(pynvml, i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _nvidia_gpu(pynvml: Any, index: int) -> Device:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    label = pynvml.nvmlDeviceGetName(handle)
    label = label.decode() if isinstance(label, bytes) else str(label)
    plain = _plain(label)
    facts = next((d for d in DATASHEETS.values() if plain.startswith(_plain(d.name))), None)
    driver = pynvml.nvmlSystemGetDriverVersion()
    details = (
        ("driver", driver.decode() if isinstance(driver, bytes) else str(driver)),
        ("memory_mb", pynvml.nvmlDeviceGetMemoryInfo(handle).total >> 20),
        ("max_clock_mhz", pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)),
    )
    return Device(f"cuda:{index}", label, "cuda", True, facts, details)
