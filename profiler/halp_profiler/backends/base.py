"""What a backend is: something that says what it can time, and times it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from halp_profiler.errors import UsageError
from halp_profiler.kernel import Kernel
from halp_profiler.records import Header, Point
from halp_profiler.steps import Steps


@dataclass(frozen=True)
class Request:
    """One point that is wanted: a kernel with that many channels in and out."""

    kernel: Kernel
    c_in: int
    c_out: int


PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
LAYOUTS = ("nchw", "nhwc")
CACHES = ("warm", "cold")


@dataclass(frozen=True)
class Settings:
    """How kernels run; a table holds one setting.

    Attributes:
        threads: of the runtime, on a CPU.
        batch: images per call.
        precision: one of ``PRECISIONS``; ``tf32`` is fp32 data multiplied in tensor cores.
        layout: ``nhwc`` is channels-last; None: the backend's own choice.
        l2: on a GPU, whether a kernel finds its data in the second-level cache (``warm``) or not (``cold``).

    Raises:
        UsageError: an impossible value.
    """

    threads: int = 1
    batch: int = 1
    precision: str = "fp32"
    layout: str | None = None
    l2: str = "warm"

    def __post_init__(self) -> None:
        if self.threads < 1 or not 1 <= self.batch <= 1 << 16:
            why = f"{self.threads} threads, batch {self.batch}"
            raise UsageError("The device cannot be profiled", why, "Use 1 or more threads, and a batch of 1 to 65536")
        for name, value, known in (
            ("precision", self.precision, PRECISIONS), ("layout", self.layout or "nchw", LAYOUTS),
            ("L2 state", self.l2, CACHES),
        ):  # fmt: skip
            if value not in known:
                why = f"{name} is {value!r}"
                raise UsageError("The device cannot be profiled", why, f"Use one of {', '.join(known)}")


class Backend(Protocol):
    """Times kernels on one device.

    A backend may besides have ``expect(ranges)``, called before a sweep with all that the networks run, and
    ``companions(ranges)``, which names kernels that those bring with them.

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
