"""What a backend is: something that says what it can time, and times it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from halp_profiler.kernel import Kernel
from halp_profiler.steps import Steps
from halp_profiler.table import Header, Point


@dataclass(frozen=True)
class Request:
    """One point that is wanted: a kernel with that many channels in and out."""

    kernel: Kernel
    c_in: int
    c_out: int


class Backend(Protocol):
    """Times kernels on one device.

    Attributes:
        together: points measured at once; a crash loses as many at most.
    """

    together: int

    def header(self) -> Header:
        """What a table of this backend begins with."""
        ...

    def steps(self, kernel: Kernel) -> Steps:
        """Where this device's staircase has its edges for this kernel."""
        ...

    def refusal(self, kernel: Kernel) -> str | None:
        """Why this kernel cannot be timed here; None when it can."""
        ...

    def measure(self, requests: Sequence[Request]) -> list[Point]:
        """One point a request, in order.

        Raises:
            DeviceError: the runtime or the device failed.
        """
        ...
