"""A table that somebody gave and that lacks kernels is completed in a copy."""

from __future__ import annotations

import hashlib
from pathlib import Path

from halp_iee.latency.table import cache_folder
from halp_iee.run.job import short_name
from halp_profiler.files import whole


def copy_to_complete(given: Path, model: str) -> Path:
    """A copy, in the user's cache, of a table that was given and lacks some of a network's kernels.

    What is missing is measured into that: only ``halp-iee profile`` changes a file of the user's. The same content
    gives the same copy, with what was measured into it before.
    """
    content = given.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:8]
    copy = cache_folder() / f"{given.stem}-with-{short_name(model)}-{digest}.jsonl"
    if not copy.is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with whole(copy) as file:
            file.write_bytes(content)
    return copy
