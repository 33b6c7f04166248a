"""Several devices at once: one spawned process a device, never two on one; the work divided and merged."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from queue import Empty
from typing import Any

from halp_profiler import errors, sweep
from halp_profiler import table as tables
from halp_profiler.devices import Device, find, use_cores
from halp_profiler.errors import DeviceError, HalpError, UsageError
from halp_profiler.geometry import output_spatial
from halp_profiler.kernel import KernelRange
from halp_profiler.surface import HELD_OUT, Surface
from halp_profiler.sweep import Progress, Result

Settings = Mapping[str, Any]
"""Keyword arguments of ``backends.backend_for``."""


def run(
    devices: Sequence[str],
    ranges: Sequence[KernelRange],
    path: str | Path,
    *,
    settings: Settings,
    mode: str = "adaptive",
    max_error: float = 0.02,
    time_budget_s: float | None = None,
    progress: Progress | None = None,
) -> Result:
    """Measures a table on several devices of one kind: other GPUs of one model, or core sets of one processor.

    Every device gets whole kernels and writes a part beside the table (``NAME.cuda-0.part``), which holds what
    the table had already. The parts are merged in one step when all are done; until then they are the
    resume log, and a call that was interrupted is simply repeated.

    Args:
        devices: names such as ``cuda:0`` and ``cpu:0-3``.
        ranges, path, mode, max_error, time_budget_s, progress: see ``sweep.run``.
        settings: how kernels run.

    Raises:
        UsageError: no device, one named twice, or devices of different kinds.
        DeviceError: another process measures on one of them, or one of them failed.
        TableError: as ``sweep.run``.
    """
    start, path = time.monotonic(), Path(path)
    found = _distinct(devices)
    shares = divided(sweep.merged(ranges), len(found))
    busy = [(d, share, path.with_name(f"{path.name}.{_slug(d.name)}.part"))
            for d, share in zip(found, shares, strict=True) if share]  # fmt: skip
    before = tables.read(path).points if path.is_file() else ()
    for _, _, part in busy:
        if before and not part.exists():
            tables.merge([path], part)
    asked = {"mode": mode, "max_error": max_error, "time_budget_s": time_budget_s}
    jobs = [(d, share, str(part), dict(settings), asked) for d, share, part in busy]
    results = _spawned(jobs, progress)
    parts = [part for _, _, part in busy]
    merged = tables.merge([path, *parts] if path.is_file() else parts, path)
    for part in parts:
        part.unlink(missing_ok=True)
    held_out = held_out_errors(merged, ranges)
    middle = sorted(held_out)[len(held_out) // 2] if held_out else float("nan")
    refused: dict[str, str] = {}
    for r in results:
        refused |= r.refused
    return Result(
        path, sum(r.measured for r in results), len(before), middle, max(held_out, default=float("nan")), refused,
        all(r.complete for r in results), time.monotonic() - start,
    )  # fmt: skip


def divided(ranges: Sequence[KernelRange], parts: int) -> list[list[KernelRange]]:
    """Whole kernels for every device, about the same work each: the dearest first, to the least laden."""
    shares: list[list[KernelRange]] = [[] for _ in range(parts)]
    load = [0.0] * parts
    for r in sorted(ranges, key=_work, reverse=True):
        least = load.index(min(load))
        shares[least].append(r)
        load[least] += _work(r)
    return shares


def held_out_errors(table: tables.Table, ranges: Sequence[KernelRange]) -> list[float]:
    """|predicted / measured - 1| of every held-out point of these kernels."""
    wanted, found = {r.kernel for r in ranges}, []
    for kernel in wanted:
        points = [p for p in table.points if p.kernel == kernel]
        judges = [p for p in points if HELD_OUT in p.flags and p.median_ms > 0]
        if judges and len(judges) < len(points):
            surface = Surface(kernel, points, table.header.steps(kernel))
            found += [abs(float(surface(p.c_in, p.c_out)) / p.median_ms - 1) for p in judges]
    return found


def _work(r: KernelRange) -> float:
    """A guess at what a kernel's sweep costs: a fixed part for its points, and its widest multiply-accumulates."""
    k = r.kernel
    made = k.of_tensor(r.c_out[1])
    macs = prod(output_spatial(k)) * prod(k.kernel_size or (1,)) * made * (k.group_width or r.c_in[1])
    return 1e7 + macs


def _distinct(names: Sequence[str]) -> list[Device]:
    """The devices of these names. Raises UsageError where they cannot share one table or one is used twice."""
    if not names:
        raise UsageError("No device can be profiled", "none was named", "Name one or more, e.g. cuda:0,cuda:1")
    found = [find(name) for name in names]
    if whole := [d.name for d in found if d.name == "cpu"]:
        raise UsageError("The processor cannot be divided", f"{whole[0]} is all of it", "Name its cores: cpu:0,cpu:1")
    used: set[str] = set()
    for d in found:
        mine = set(_claims(d))
        if not d.attached:
            raise DeviceError(f"{d.label} cannot be measured", "it is not attached to this machine", "Leave it out")
        if mine & used:
            raise UsageError(f"{d.name} was named twice", "one device measures for one process", "Name it once")
        used |= mine
    if len(labels := {d.label for d in found}) > 1:
        why = f"they are {' and '.join(sorted(labels))}"
        raise UsageError("These devices cannot share a table", why, "Profile each kind into a table of its own")
    if len({len(d.cores) for d in found}) > 1:
        why = "their numbers of cores differ"
        raise UsageError("These devices cannot share a table", why, "Name core sets of one size")
    return found


def _claims(device: Device) -> list[str]:
    """What nobody else may use meanwhile."""
    if device.kind == "cpu":
        return [f"cpu-{core}" for core in device.cores]
    return [str(dict(device.details).get("uuid", device.name))]


@contextmanager
def claimed(device: Device) -> Iterator[None]:
    """The device for this process alone, among all that measure on this machine.

    Raises:
        DeviceError: another process measures on it.
    """
    with contextlib.ExitStack() as stack:
        for claim in _claims(device):
            name = f"halp-profiler-{os.getuid() if hasattr(os, 'getuid') else 0}-{_slug(claim)}.lock"
            file = stack.enter_context(open(Path(tempfile.gettempdir()) / name, "w"))
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:  # Windows has no such locks
                pass
            except OSError as e:
                why = "another process is measuring on it"
                raise DeviceError(f"{device.name} is taken", why, "Wait for that, or name another device") from e
        yield


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


_Job = tuple[Device, list[KernelRange], str, dict[str, Any], dict[str, Any]]


def _spawned(jobs: Sequence[_Job], progress: Progress | None) -> list[Result]:
    """Runs every job in a process of its own; when one fails the others are stopped, and keep what they measured."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_work_on, args=(i, job, queue), daemon=True) for i, job in enumerate(jobs)]
    for worker in workers:
        worker.start()
    results: dict[int, Result] = {}
    state: dict[int, tuple[int, int, float]] = {}
    try:
        while len(results) < len(jobs):
            try:
                i, kind, what = queue.get(timeout=0.5)
            except Empty:
                for i, worker in enumerate(workers):
                    if i not in results and worker.exitcode is not None:
                        why = f"its process ended with code {worker.exitcode}"
                        remedy = "Call again: what it measured is kept"
                        raise DeviceError(f"{jobs[i][0].name} failed", why, remedy) from None
                continue
            if kind == "error":
                raise _error(*what)
            if kind == "done":
                results[i] = what
            else:
                state[i] = what
            if progress and state:
                progress(sum(s[0] for s in state.values()), sum(s[1] for s in state.values()),
                         max(s[2] for s in state.values()))  # fmt: skip
    finally:
        for worker in workers:
            if len(results) < len(jobs):
                worker.terminate()
            worker.join()
    return [results[i] for i in range(len(jobs))]


def _work_on(index: int, job: _Job, queue: Any) -> None:
    """What a spawned process does."""
    device, ranges, part, settings, asked = job
    try:
        with claimed(device):
            use_cores(device)
            from halp_profiler.backends import backend_for

            report: Callable[..., None] = lambda *state: queue.put((index, "progress", state))  # noqa: E731
            result = sweep.run(backend_for(device, **settings), ranges, part, progress=report, **asked)
        queue.put((index, "done", result))
    except HalpError as e:
        queue.put((index, "error", (type(e).__name__, e.what, e.why, e.remedy)))
    except KeyboardInterrupt:
        return
    except Exception as e:
        why = f"{type(e).__name__}: {e}"[:300]
        queue.put((index, "error", ("DeviceError", f"{device.name} failed", why, "Report this")))


def _error(name: str, what: str, why: str, remedy: str) -> HalpError:
    kind = getattr(errors, name, DeviceError)
    return kind(what, why, remedy)
