"""Writes a file so that there is either the old one or the whole new one, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write instead of `path`, beside it; it takes its place when all of it is on the disk.

    What is no file, as a pipe or a device, is written to itself: to replace it would take it away from others.

    Raises:
        OSError: as writing does; `path` is what it was, and nothing is left beside it.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # as the user's umask has it; some writers give one of their own
        yield partial
        os.chmod(partial, mode)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
