"""What a part of the evidence has at hand: its device, its folder, its time, and where its rows go."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Part:
    """One part, in a process of its own.

    Attributes:
        name: of the part; its rows are kept in ``parts/NAME.jsonl``.
        out: the folder of the evidence.
        seconds: that it may take; it is killed after that.
        tiny: small networks and few samples, for a test on a CPU.
        cuda: whether there is a GPU.
    """

    name: str
    out: Path
    seconds: float
    tiny: bool
    cuda: bool
    _start: float = field(default_factory=time.monotonic)

    def left_s(self) -> float:
        return self.seconds - (time.monotonic() - self._start)

    def row(self, **values: Any) -> None:
        """Write a row at once, so that it is there even if the next one never comes."""
        path = self.out / "parts" / f"{self.name}.jsonl"
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(plain(values)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def table(self, batch: int, precision: str) -> Path:
        """Where the latency table of this setting is."""
        return self.out / "tables" / f"{self.network}-b{batch}-{precision}.jsonl"

    @property
    def network(self) -> str:
        return "resnet20" if self.tiny else "resnet50"

    @property
    def image(self) -> tuple[int, int, int]:
        return (3, 32, 32) if self.tiny else (3, 224, 224)

    @property
    def where(self) -> str:
        return "cuda:0" if self.cuda else "cpu"


def plain(value: Any) -> Any:
    """As JSON takes it: five figures are more than a timing holds."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None


def rows_of(out: Path, name: str) -> list[dict[str, Any]]:
    """What a part has written so far; a line that was cut off is left out."""
    path = out / "parts" / f"{name}.jsonl"
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
