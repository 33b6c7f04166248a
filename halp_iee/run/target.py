"""The latency that a person asks for: a fraction of dense, milliseconds, or frames a second."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from halp_iee.errors import UsageError

_FORM = re.compile(r"^\s*([+-]?\d+(?:\.\d*)?(?:e[+-]?\d+)?|[+-]?\.\d+(?:e[+-]?\d+)?)\s*(ms|fps)?\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """`0.3` is that fraction of the dense latency; `4ms` and `250fps` are absolute."""

    value: float
    unit: Literal["fraction", "ms", "fps"]

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read a target as a person types it.

        Raises:
            UsageError: not a number, not positive, or a fraction above 1.
        """
        examples = "give a fraction of the dense latency such as 0.3, or an absolute 4ms or 250fps"
        match = _FORM.match(text)
        if match is None:
            raise UsageError(
                f"cannot read the latency target {text!r}",
                "it is not a number with nothing, ms or fps behind it",
                examples,
            )
        value, unit = float(match[1]), (match[2] or "fraction").lower()
        if not 0.0 < value < float("inf"):
            raise UsageError(
                f"cannot aim at a latency target of {text.strip()}", "it must be above 0 and finite", examples
            )
        if unit == "fraction" and value > 1.0:
            raise UsageError(
                f"cannot aim at a latency target of {text.strip()}",
                "without a unit it is a fraction of the dense latency and lies in (0, 1]",
                examples,
            )
        return cls(value, unit)  # type: ignore[arg-type]

    def of_ms(self, dense_ms: float, batch: int = 1) -> float:
        """The target in ms, whether it makes sense or not."""
        return {"fraction": self.value * dense_ms, "ms": self.value, "fps": 1000.0 * batch / self.value}[self.unit]

    def resolve_ms(self, dense_ms: float, batch: int = 1) -> float:
        """The target in ms for a network of that dense latency.

        Raises:
            UsageError: the dense network is already as fast as that.
        """
        target_ms = self.of_ms(dense_ms, batch)
        if target_ms > dense_ms or (self.unit != "fraction" and target_ms == dense_ms):
            raise UsageError(
                f"nothing is to be done for a target of {self}",
                f"the dense network already runs in {dense_ms:.4g} ms, under the {target_ms:.4g} ms asked for",
                "ask for less time, or deploy the network as it is",
            )
        return target_ms

    def __str__(self) -> str:
        return f"{self.value:g}" + ("" if self.unit == "fraction" else self.unit)
