"""A run's network as files for production: each proved against the slim network on the run's data, or not written."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from glob import escape
from pathlib import Path
from typing import Any

from halp_iee.errors import ArtifactError, HalpError, UsageError
from halp_iee.export.formats import WRITERS, require_runtime
from halp_iee.export.gate import Exported, prove
from halp_iee.export.onnx import writable
from halp_iee.export.source import SUFFIX, Options, calibration, source_of
from halp_iee.progress import Progress, Silent
from halp_iee.run.directory import RunDirectory, read_json, write_json

_LOCK = "lock"
"""In the folder that an export works in; held as long as the export runs."""


def deploy(run: RunDirectory, result: Mapping[str, Any], out: Path, options: Options, progress: Progress | None = None
) -> Exported:  # fmt: skip
    """Export the slim network of a finished run.

    The files are made in a folder beside ``out`` and run in the runtime that they are for. Outputs must agree with the
    slim network in torch on the example, random inputs and real images of the test set (``parity.prove``), and top-1
    must be that of the slim network, less ``options.drop`` at most. Only then do they take their place, the main
    file last. What was found is kept in the run's ``exports.json``.

    Raises:
        ArtifactError: the run's artifact is broken, was changed since it was measured, or ``out`` cannot be written.
        DeviceError: the runtime is not there.
        GraphError: the format cannot express the network.
        ParityError: they disagree; nothing was written.
        UsageError: the options do not go together.
    """
    options.check()
    progress = progress or Silent()
    if out.suffix.lower() != SUFFIX[options.format]:
        raise UsageError(f"cannot write {options.format} to {out}", f"its file ends in {SUFFIX[options.format]}",
                         "give --out such a name")  # fmt: skip
    writable(out)
    require_runtime(run, options)
    source = source_of(run, result, options)
    if options.precision == "int8":
        calibration(source)  # says before the work that there is nothing to calibrate with
    with progress.task(f"export to {options.format}") as task, _beside(out) as folder:
        candidate = WRITERS[options.format](source, folder / out.name)
        task.update(1, 3, "checking")
        done = prove(source, candidate, out)
        task.update(2, 3, "writing")
        _put(candidate.files, out.parent)
    _record(run, done)
    return done


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder on the same file system, gone in the end, also when the process is told to end meanwhile.

    What an export that was killed has left there goes too: nobody holds the lock of its folder any more.
    """
    with _told_to_end(), ExitStack() as during:
        try:
            folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        except OSError as error:
            raise ArtifactError(
                f"Cannot write {out}", (error.strerror or str(error)).lower(), "Choose a folder that you may write to"
            ) from error
        during.callback(shutil.rmtree, folder, ignore_errors=True)
        with suppress(OSError):  # where files cannot be locked, nothing is known of what others left
            held = during.enter_context(open(folder / "unlocked", "wb"))
            fcntl.flock(held, fcntl.LOCK_EX)
            os.rename(held.name, folder / _LOCK)  # under this name it was never seen unlocked
        for other in out.parent.glob(f".{escape(out.name)}.*.partial"):
            _remove_if_left(other)
        yield folder


def _remove_if_left(folder: Path) -> None:
    """Remove the folder of an export that has ended; one without a lock is nobody's that is known, and stays."""
    with suppress(OSError), open(folder / _LOCK, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _told_to_end() -> Iterator[None]:
    """SIGTERM ends the process as an exception does, so that what must be cleared away is; 143 is the shell's code."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # no thread but the main one may ask for signals, and a caller's own handler stands
        return

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _put(files: tuple[Path, ...], folder: Path) -> None:
    """All files to their places: the main file last, so where it is the others are."""
    main = folder / files[0].name
    try:
        for file in files:
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        if len(files) > 1:
            main.unlink(missing_ok=True)
        for file in reversed(files):
            os.replace(file, folder / file.name)
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {main}", (error.strerror or str(error)).lower(), "Free some space or choose another folder"
        ) from error


def _record(run: RunDirectory, done: Exported) -> None:
    """Keep what was found in the run, for its report and its model card; the latest of each path."""
    known = [one for one in exports_of(run) if one.get("path") != done.path]
    try:
        write_json(run.exports, [*known, asdict(done)])
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {run.root / 'exports.json'}", (error.strerror or str(error)).lower(),
            "The export itself is written; make the run's directory writable to keep its record",
        ) from error  # fmt: skip


def exports_of(run: RunDirectory) -> list[dict[str, Any]]:
    """What is known of a run's exports; nothing where the record is missing or broken."""
    try:
        found = read_json(run.exports, list[dict[str, Any]])
    except HalpError:
        return []
    return [one for one in found if Path(str(one.get("path"))).is_file()]
