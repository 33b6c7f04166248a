"""Networks side by side: by runtime, batch and threads, interleaved so that drift cancels, with a verdict."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from halp_iee.errors import HalpError, UsageError
from halp_iee.measure.compare import Comparison, Verdict, judge
from halp_iee.measure.energy import measure_energy
from halp_iee.measure.engine import Engine, Feeds, Inputs, bind, fixed_batch, random_feeds
from halp_iee.measure.subjects import RUNTIMES, Subject
from halp_iee.progress import Progress, Silent
from halp_profiler.timing import Timing, sample_interleaved

BLOCKS = 12
"""Paired values of a comparison; each is the ratio of two medians over a stretch in which both ran in turn."""
_UNSTABLE_OVER = 0.1
_RETRIES = 2
_QUICK_S = 0.5  # what opens in this time is opened anew for every block


@dataclass(frozen=True)
class Row:
    """One network in one runtime at one batch and number of threads.

    Attributes:
        artifact: as the person named it.
        runtime: name and version.
        device: ``cpu`` or ``cuda:N``.
        batch, threads: images in a call; CPU threads.
        median_ms, p90_ms, p99_ms: of one call.
        fps: images a second, ``1000 batch / median_ms``.
        samples: how many calls or bursts of calls the quantiles are over.
        unstable: whether the quartiles stayed more than 10% of the median apart.
        energy_mj: millijoules an image, on a GPU whose driver counts them; else None.
        against: what it was compared with, None if nothing.
        ratio, ratio_low, ratio_high: its latency over the other's, with the bounds of the 95% interval.
        verdict: of this network: faster, slower, or the same within 1%.
    """

    artifact: str
    runtime: str
    device: str
    batch: int
    threads: int
    median_ms: float
    p90_ms: float
    p99_ms: float
    fps: float
    samples: int
    unstable: bool
    energy_mj: float | None = None
    against: str | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    verdict: Verdict | None = None


COLUMNS = tuple(column.name for column in fields(Row))


@dataclass(frozen=True)
class Skipped:
    """A combination that could not be measured, and why."""

    artifact: str
    runtime: str
    batch: int | None
    why: str


@dataclass(frozen=True)
class Bench:
    """All rows, and what could not be measured."""

    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]

    def to_json(self) -> dict[str, Any]:
        return {"results": [asdict(row) for row in self.rows], "skipped": [asdict(one) for one in self.skipped]}


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes:
        runtimes: of ``onnxruntime``, ``openvino``, ``torch``.
        batches: images in a call; None: what the file is made for, 1 where it is open.
        threads: CPU threads.
        seconds: spent on each network in each setting.
        shapes: whole input shapes by name, for ONNX files with open axes.
        inputs: arrays for every network instead of random ones.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
    """

    runtimes: Sequence[str] = ("onnxruntime",)
    batches: Sequence[int | None] = (None,)
    threads: Sequence[int] = (1,)
    seconds: float = 3.0
    shapes: Mapping[str, Sequence[int]] | None = None
    inputs: Inputs | None = None
    device: str = "cpu"

    def settings(self) -> Iterator[tuple[str, int | None, int]]:
        return product(dict.fromkeys(self.runtimes), dict.fromkeys(self.batches), dict.fromkeys(self.threads))

    def check(self) -> None:
        """Raises UsageError where a runtime is not known."""
        for runtime in self.runtimes:
            if runtime not in RUNTIMES:
                raise UsageError(f"no runtime is known as {runtime!r}", f"there are {', '.join(RUNTIMES)}", "name one")


def bench(
    subjects: Sequence[Subject], plan: Plan, against: Subject | None = None, progress: Progress | None = None
) -> Bench:
    """Measure every network in every setting; those of one setting run in turn.

    What one runtime cannot run is left out and named. With ``against`` every network is compared with it: the time
    is cut into blocks, each gives the ratio of the two medians, and the interval is the bootstrap's over the blocks
    (``judge``). Each block is a session of its own where the runtime opens one in half a second: what a session
    settles once, such as where its weights lie in memory, can make it 3% faster or slower for as long as it lives.

    Raises:
        HalpError: nothing could be measured; the error of the first combination.
    """
    plan.check()
    progress = progress or Silent()
    rows: list[Row] = []
    skipped: list[Skipped] = []
    first: HalpError | None = None
    settings = list(plan.settings())
    unknown = set(plan.shapes or ())
    with tempfile.TemporaryDirectory() as folder, progress.task("measuring", len(settings)) as task:
        for at, (runtime, batch, threads) in enumerate(settings):
            calls: dict[str, _Ready] = {}
            for one in {one.label: one for one in [*subjects, *([against] if against else [])]}.values():
                try:
                    calls[one.label] = _ready(one, plan, runtime, batch, threads, Path(folder))
                except HalpError as error:
                    first = first or error
                    skipped.append(Skipped(one.label, runtime, batch, f"{error.why}. {error.remedy}"))
            unknown -= {spec.name for ready in calls.values() for spec in ready.engine.inputs}
            if unknown and calls:
                raise _no_such_input(sorted(unknown)[0], calls)
            if any(one.label in calls for one in subjects):
                rows += _measure(calls, None if against is None else against.label, plan, threads, progress.say)
            task.update(at + 1)
    if not rows:
        assert first is not None, "something was asked for"
        raise first
    return Bench(tuple(rows), tuple(skipped))


def _no_such_input(name: str, calls: Mapping[str, _Ready]) -> UsageError:
    known = sorted({spec.name for ready in calls.values() for spec in ready.engine.inputs})
    return UsageError(
        "A shape is given for an input that is not there", f"no network here has an input {name!r}",
        f"Give it for one of {', '.join(map(repr, known))}",
    )  # fmt: skip


@dataclass(frozen=True)
class _Ready:
    label: str
    engine: Engine
    call: Callable[[], Any]
    batch: int
    reopen: Callable[[], Callable[[], Any]] | None


def _ready(one: Subject, plan: Plan, runtime: str, batch: int | None, threads: int, folder: Path) -> _Ready:
    def opened() -> Engine:
        return one.engine(runtime, batch=batch, threads=threads, device=plan.device, folder=folder)

    engine = opened()
    feeds = _feeds(one, engine, plan, batch)
    call = engine.prepare(feeds)
    try:
        call()
    except Exception as error:  # the runtimes' exceptions have no common base but Exception
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UsageError(
            f"{one.label} fails in {engine.runtime}", reason,
            "Give inputs that it takes, with --inputs or --shape on the command line",
        ) from error  # fmt: skip
    first = next(iter(feeds.values()), None)
    size = len(first) if first is not None and first.ndim else 1
    quick = False
    if runtime != "torch":  # a module has no sessions
        since = time.perf_counter()
        call = opened().prepare(feeds)  # what was exported for the first one is not exported again
        quick = time.perf_counter() - since <= _QUICK_S
    reopen = (lambda: opened().prepare(feeds)) if quick else None
    return _Ready(one.label, engine, call, batch or fixed_batch(engine) or size, reopen)


def _feeds(one: Subject, engine: Engine, plan: Plan, batch: int | None) -> Feeds:
    if plan.inputs is not None:
        return bind(engine.inputs, plan.inputs, label=one.label)
    # A shape that is meant for another of the networks is none of this one's business.
    names = {spec.name for spec in engine.inputs}
    shapes = {name: shape for name, shape in (plan.shapes or {}).items() if name in names}
    if batch is not None:
        shapes = {name: (batch, *shape[1:]) for name, shape in shapes.items()}
    return random_feeds(engine.inputs, batch=batch, shapes=shapes, label=one.label)


def _measure(
    calls: Mapping[str, _Ready],
    reference: str | None,
    plan: Plan,
    threads: int,
    say: Callable[[str], None],
) -> list[Row]:
    blocks = _steady(calls, plan.seconds, say)
    rows = []
    for label, ready in calls.items():
        timing = Timing.of(np.concatenate(blocks[label]), _UNSTABLE_OVER)
        compared: Comparison | None = None
        if reference in calls and reference is not None and reference != label:
            pairs = [(np.median(a), np.median(b)) for a, b in zip(blocks[label], blocks[reference], strict=True)]
            compared = judge(np.asarray(pairs))
        rows.append(
            Row(
                artifact=label, runtime=ready.engine.runtime, device=plan.device, batch=ready.batch, threads=threads,
                median_ms=timing.median_ms, p90_ms=timing.p90_ms, p99_ms=timing.p99_ms,
                fps=1000.0 * ready.batch / timing.median_ms, samples=timing.samples, unstable=timing.unstable,
                energy_mj=_energy(ready, plan),
                against=reference if compared else None,
                ratio=compared.ratio if compared else None,
                ratio_low=compared.low if compared else None,
                ratio_high=compared.high if compared else None,
                verdict=compared.verdict if compared else None,
            )
        )  # fmt: skip
    return rows


def _energy(ready: _Ready, plan: Plan) -> float | None:
    """Millijoules an image; a GPU's counter says nothing of what runs on the processor."""
    if not plan.device.startswith("cuda"):
        return None
    found = measure_energy(ready.call, int(plan.device.partition(":")[2] or 0), seconds=max(1.0, plan.seconds / 3))
    return None if found is None else found.mj_per_call / ready.batch


def _steady(calls: Mapping[str, _Ready], seconds: float, say: Callable[[str], None]) -> dict[str, list[np.ndarray]]:
    """Samples of every network, block by block; measured again where unsteady, and the steadiest taken."""
    best, spread = _blocks(calls, seconds)
    for attempt in range(_RETRIES):
        if spread <= _UNSTABLE_OVER:
            break
        say(f"unsteady, measuring again ({attempt + 1} of {_RETRIES})")
        again, now = _blocks(calls, seconds)
        if now < spread:
            best, spread = again, now
    return best


def _blocks(calls: Mapping[str, _Ready], seconds: float) -> tuple[dict[str, list[np.ndarray]], float]:
    found: dict[str, list[np.ndarray]] = {label: [] for label in calls}
    running = {label: ready.call for label, ready in calls.items()}
    for block in range(BLOCKS):
        for label, ready in calls.items():
            if block and ready.reopen is not None:
                running[label] = ready.reopen()
        samples = sample_interleaved(
            running,
            min_seconds=seconds / BLOCKS, min_rounds=3, warmup=2, alike=True,
        )  # fmt: skip
        for label, ms in samples.items():
            found[label].append(ms)
    spread = max(Timing.of(np.concatenate(parts), _UNSTABLE_OVER).spread for parts in found.values())
    return found, spread
