"""Compiles the CPU kernel with the machine's own C compiler, once, and loads it.

A C file and `ctypes` rather than numba or a torch extension: the kernel needs AVX-512 permutations, which
numba cannot say; importing numba costs more than compiling this; and a torch extension takes half a
minute to compile, this about a second.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("kernel.c")
_FLAGS = ("-O3", "-march=native", "-std=c11", "-ffp-contract=fast", "-fPIC", "-shared")


class Weights(ctypes.Structure):
    """The kernel's view of a layer; see `kernel.c`."""

    _fields_ = [
        ("rows", ctypes.c_int64), ("columns", ctypes.c_int64), ("threads", ctypes.c_int64),
        ("bias", ctypes.c_void_p), ("start", ctypes.c_void_p), ("values", ctypes.c_void_p),
        ("index16", ctypes.c_void_p), ("index32", ctypes.c_void_p),
        ("tiles", ctypes.c_int64), ("blocks", ctypes.c_int64), ("steps", ctypes.c_void_p),
        ("first", ctypes.c_void_p), ("slot_values", ctypes.c_void_p), ("slot_index", ctypes.c_void_p),
        ("rest", ctypes.c_void_p), ("rest_first", ctypes.c_void_p), ("rest_values", ctypes.c_void_p),
        ("rest_index", ctypes.c_void_p),
    ]  # fmt: skip


def cache_directory() -> Path:
    """Where compiled kernels lie: `$XDG_CACHE_HOME/halp-iee`, by default in the home directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "halp-iee"


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel; None where there is no compiler, or none that can compile it.

    `CC` names another compiler; `HALP_IEE_NO_COMPILER` forbids all.
    """
    compiler = os.environ.get("CC") or next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None or os.environ.get("HALP_IEE_NO_COMPILER"):
        return None
    try:
        for extra in (("-fopenmp",), ()):
            path = _compiled(compiler, extra)
            if path is not None:
                return _loaded(path)
    except (OSError, subprocess.SubprocessError):
        pass  # no room for it, or no compiler after all: torch's CSR product computes the layer
    return None


def _compiled(compiler: str, extra: tuple[str, ...]) -> Path | None:
    """Path of the library; compiled unless this very source has been, for this very machine."""
    made_of = "\0".join([SOURCE.read_text(encoding="utf-8"), compiler, *extra, *_FLAGS, _processor()])
    path = cache_directory() / f"condensed-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [*compiler.split(), *_FLAGS, *extra, str(SOURCE), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, timeout=120, check=False)
        if done.returncode != 0:
            return None
        made.replace(path)  # whole or not at all, however many processes compile at once
    return path


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return "".join(sorted({line for line in text.splitlines() if line.startswith(("flags", "model name"))}))
    except OSError:
        return f"{platform.machine()} {platform.processor()}"


def _loaded(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    found.condensed_one.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    found.condensed_one.restype = None
    found.condensed_many.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_int64, ctypes.c_int64]
    found.condensed_many.restype = ctypes.c_int
    found.condensed_has_tiles.restype = ctypes.c_int
    return found
