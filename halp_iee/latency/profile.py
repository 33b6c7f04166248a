"""Makes a network's latency table on a device, or goes on with one that was begun."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from halp_iee.latency.layers import Traced, sweep_plan
from halp_iee.latency.table import SUFFIX, LatencyTable, cache_folder, slug
from halp_profiler import plan, sweep
from halp_profiler.backends import backend_for
from halp_profiler.devices import Device, find
from halp_profiler.errors import TableError
from halp_profiler.kernel import KernelRange
from halp_profiler.sweep import Progress


def profile_network(
    graph: Traced,
    device: Device | str = "cpu",
    path: str | Path | None = None,
    *,
    model: str = "",
    source: str | None = None,
    threads: int = 1,
    batch: int = 1,
    precision: str = "fp32",
    backend: str | None = None,
    layout: str | None = None,
    l2: str = "warm",
    mode: str = "adaptive",
    max_error: float = 0.02,
    time_budget_s: float | None = None,
    progress: Progress | None = None,
) -> LatencyTable:
    """The table that predicts ``graph`` at any widths on ``device``.

    Points that the file holds already are kept and not measured again, so a call that was interrupted is
    simply repeated, and a table grows with every network that is profiled into it.

    Args:
        graph: the traced network.
        device: a ``Device`` or its name.
        path: the table's file; None: ``default_table_path``.
        model: the network's name, for the default path.
        source: ``measured`` or ``modelled``; None: measured where the device is attached and has a backend.
        threads: of the runtime, on a CPU.
        batch: images per call.
        precision: ``fp32``; other backends and modelled devices know more.
        backend, layout, l2: see ``halp_profiler.backends.backend_for``.
        mode, max_error, time_budget_s, progress: see ``halp_profiler.sweep.run``.

    Raises:
        UsageError: an unknown device or setting.
        DeviceError: it was to be measured and cannot be; or the runtime is not installed.
        TableError: the file is broken, of another device, or cannot be written; or the network has no kernels.
    """
    return profile_with_result(
        graph, device, path, model=model, source=source, threads=threads, batch=batch, precision=precision,
        backend=backend, layout=layout, l2=l2, mode=mode, max_error=max_error, time_budget_s=time_budget_s,
        progress=progress,
    )[0]  # fmt: skip


def profile_with_result(
    graph: Traced,
    device: Device | str = "cpu",
    path: str | Path | None = None,
    *,
    model: str = "",
    source: str | None = None,
    threads: int = 1,
    batch: int = 1,
    precision: str = "fp32",
    backend: str | None = None,
    layout: str | None = None,
    l2: str = "warm",
    mode: str = "adaptive",
    max_error: float = 0.02,
    time_budget_s: float | None = None,
    progress: Progress | None = None,
) -> tuple[LatencyTable, sweep.Result]:
    """As ``profile_network``, with what the sweep came to: points, held-out error, seconds."""
    found = find(device) if isinstance(device, str) else device
    ranges = _ranges(graph)
    settings: dict[str, Any] = {
        "source": source, "threads": threads, "batch": batch, "precision": precision, "backend": backend,
        "layout": layout, "l2": l2,
    }  # fmt: skip
    where = Path(path) if path is not None else default_table_path(found, model, **settings)
    result = sweep.run(
        backend_for(found, **settings),
        ranges,
        where,
        mode=mode,
        max_error=max_error,
        time_budget_s=time_budget_s,
        progress=progress,
    )
    return LatencyTable.load(where), result


def emit(graph: Traced, path: str | Path, **settings: Any) -> plan.Plan:
    """Writes what is to be measured for ``graph``, for ``python -m halp_profiler run`` on another machine.

    Args:
        graph: the traced network.
        path: the file.
        settings: ``device threads batch precision max_error time_budget_s``, as in ``halp_profiler.plan.Plan``.

    Raises:
        TableError: the network has no kernels, or the file cannot be written.
    """
    wanted = plan.Plan(_ranges(graph), **settings)
    plan.write(wanted, path)
    return wanted


def _ranges(graph: Traced) -> tuple[KernelRange, ...]:
    ranges = sweep_plan(graph)
    if not ranges:
        raise TableError("There is nothing to profile", "the network has no kernel that is known", "Check the model")
    return ranges


def missing_from(table: LatencyTable, graph: Traced) -> tuple[KernelRange, ...]:
    """The kernels, with their widths, for which ``table`` cannot predict ``graph``; empty when it covers all.

    A table that covers a network can be used as it is, be it finished or not, shipped, or of another machine.
    """
    missing = []
    for r in sweep_plan(graph):
        if r.kernel not in table:
            missing.append(r)
            continue
        s = table.surface(r.kernel)
        low_in = -(-r.c_in[0] // r.kernel.quantum) * r.kernel.quantum
        fits = s.lines_in[0] <= low_in and s.lines_in[-1] >= r.c_in[1]
        if not r.kernel.diagonal:
            fits = fits and s.lines_out[0] <= r.c_out[0] and s.lines_out[-1] >= r.c_out[1]
        if not fits:
            missing.append(r)
    return tuple(missing)


def default_table_path(
    device: Device | str,
    model: str,
    *,
    source: str | None = None,
    batch: int = 1,
    threads: int = 1,
    precision: str = "fp32",
    backend: str | None = None,
    layout: str | None = None,
    l2: str = "warm",
) -> Path:
    """Where a table is kept when nothing is said: the first folder of ``$HALP_LATENCY_TABLES``, else the user's cache.

    The file is named after all that makes two tables different ones: the device, the runtime and its version
    or that it is modelled, threads, batch, precision, and the network.

    Raises:
        UsageError: an unknown device.
    """
    found = find(device) if isinstance(device, str) else device
    named = [p for p in os.environ.get("HALP_LATENCY_TABLES", "").split(os.pathsep) if p]
    folder = Path(named[0]) if named else cache_folder()
    modelled = source == "modelled" or backend == "modelled" or not (found.attached or backend)
    if modelled:
        parts = [found.name if found.datasheet is None else found.datasheet.name, "modelled"]
    elif found.kind == "cpu" and backend in (None, "onnxruntime-cpu"):
        parts = [found.label, f"ort{_runtime_version()}", f"t{threads}"]
    else:
        parts = [found.label, backend or "measured", layout or "", "" if l2 == "warm" else f"l2{l2}"]
        parts += [f"t{threads}"] if found.kind == "cpu" else []
    return folder / (slug(*parts, f"b{batch}", precision, model) + SUFFIX)


def _runtime_version() -> str:
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""
