"""Several machines at once, through Ray: one task a device, the work divided and merged. Ray is imported only here."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import halp_profiler
from halp_profiler import sweep
from halp_profiler import table as tables
from halp_profiler.errors import DeviceError, HalpError, UsageError
from halp_profiler.files import whole
from halp_profiler.fleet import divided, held_out_errors
from halp_profiler.kernel import KernelRange
from halp_profiler.sweep import Result


def run(
    ranges: Sequence[KernelRange],
    path: str | Path,
    *,
    workers: int,
    device: str = "cuda:0",
    settings: Mapping[str, Any],
    mode: str = "adaptive",
    max_error: float = 0.02,
    time_budget_s: float | None = None,
    address: str | None = None,
) -> Result:
    """Measures a table on ``workers`` devices of one kind in a Ray cluster.

    Every task takes a whole GPU, or as many CPUs as the runtime has threads, spread over the machines. It
    measures whole kernels, gives its table back as bytes, and these are merged with what the table had.
    The profiler's own code travels with the tasks; the machines need Python, numpy and the runtime.

    Args:
        ranges, path, mode, max_error, time_budget_s: see ``sweep.run``.
        workers: tasks, each with a device of its own.
        device: as a task sees it; Ray hides all GPUs but its own, so ``cuda:0`` is right for all of them.
        settings: keyword arguments of ``backends.backend_for``.
        address: of the cluster; None: Ray's own choice, or one that is running in this process.

    Raises:
        UsageError: no workers.
        DeviceError: ray is not installed, a device failed, or the cluster has fewer devices than workers.
        TableError: the tables differ in device or setting, or cannot be written.
    """
    if workers < 1:
        raise UsageError("No device can be profiled", f"workers is {workers}", "Ask for 1 or more")
    try:
        import ray
    except ImportError as e:
        raise DeviceError(
            "Several machines cannot be used", f"the package {e.name} is not installed", "Install it: pip install ray"
        ) from e
    start, path = time.monotonic(), Path(path)
    mine = not ray.is_initialized()
    if mine:
        modules = [str(Path(halp_profiler.__file__).parent)]
        ray.init(address=address, runtime_env={"py_modules": modules}, logging_level=logging.ERROR, log_to_driver=False)
    try:
        known = path.read_bytes() if path.is_file() else b""
        before = tables.read(path).points if known else ()
        needs: dict[str, float] = {"num_gpus": 1.0} if device.startswith("cuda") else {
            "num_gpus": 0.0, "num_cpus": float(settings.get("threads", 1))}  # fmt: skip
        have = ray.cluster_resources()
        for name, resource in (("num_gpus", "GPU"), ("num_cpus", "CPU")):
            if needs.get(name, 0.0) * workers > have.get(resource, 0.0):
                why = (
                    f"{workers} tasks need {needs[name] * workers:.0f} {resource}, it has {have.get(resource, 0.0):.0f}"
                )
                raise DeviceError("The cluster is too small", why, "Ask for fewer workers, or add machines")
        remote: Any = ray.remote(_measured)
        task = remote.options(max_retries=0, scheduling_strategy="SPREAD", **needs)
        asked = {"mode": mode, "max_error": max_error, "time_budget_s": time_budget_s}
        shares = [share for share in divided(sweep.merged(ranges), workers) if share]
        answers = ray.get([task.remote(device, share, known, dict(settings), asked) for share in shares])
    finally:
        if mine:
            ray.shutdown()
    for answer in answers:
        if isinstance(answer, tuple) and isinstance(answer[0], str):
            raise DeviceError(*answer)
    with tempfile.TemporaryDirectory(prefix="halp-") as folder:
        parts = []
        for i, (data, _) in enumerate(answers):
            parts.append(Path(folder) / f"{i}.jsonl")
            with whole(parts[-1]) as file:
                file.write_bytes(data)
        merged = tables.merge([path, *parts] if known else parts, path)
    held_out = sorted(held_out_errors(merged, ranges))
    refused: dict[str, str] = {}
    for _, result in answers:
        refused |= result.refused
    return Result(
        path, sum(r.measured for _, r in answers), len(before),
        held_out[len(held_out) // 2] if held_out else float("nan"), max(held_out, default=float("nan")), refused,
        all(r.complete for _, r in answers), time.monotonic() - start,
    )  # fmt: skip


def _measured(
    device: str, ranges: list[KernelRange], known: bytes, settings: dict[str, Any], asked: dict[str, Any]
) -> tuple[bytes, Result] | tuple[str, str, str]:
    """What a task does: the table it measured, or an error's what, why and remedy."""
    from halp_profiler.backends import backend_for
    from halp_profiler.devices import find

    with tempfile.TemporaryDirectory(prefix="halp-") as folder:
        path = Path(folder) / "part.jsonl"
        if known:
            path.write_bytes(known)
        try:
            result = sweep.run(backend_for(find(device), **settings), ranges, path, **asked)
        except HalpError as e:
            return e.what, e.why, e.remedy
        return path.read_bytes(), result
