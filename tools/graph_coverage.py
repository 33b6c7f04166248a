"""Write docs/results/graph_coverage.md from what `bench_graph.py` measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_report(rows: list[dict[str, Any]], path: Path) -> None:
    raise NotImplementedError
