"""A GPU that is not at hand, computed from its datasheet. Never a measurement, and marked so everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

from halp_profiler.backends.base import Request
from halp_profiler.datasheet import Datasheet
from halp_profiler.errors import UsageError
from halp_profiler.geometry import output_spatial
from halp_profiler.kernel import Kernel
from halp_profiler.records import Header, Point
from halp_profiler.steps import Steps

_TILES = ((128, 128, 0.80), (128, 64, 0.75), (64, 64, 0.68), (128, 32, 0.60), (64, 32, 0.52), (8, 32, 0.15))
"""(rows, columns, share of the peak it reaches): larger tiles load fewer operands a multiplication."""

_PROLOGUE = 32  # steps of the reduction that a tile spends on filling its pipeline and writing its result
_SHORTEST_SPLIT = 64  # steps of the reduction under which dividing it does not pay
_SMALLEST_COLUMNS = 32
_BANDWIDTH_SHARE = 0.78  # what streaming kernels reach of the peak
_LAUNCH_MS = 0.003
_DEPTHWISE_SHARE = 0.25  # no operand is used twice, so the multipliers mostly wait
_MISALIGNED = 1.6  # tensor cores want multiples of 8 channels; others are padded by an extra pass
_BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2}


class Modelled:
    """Roofline with tiles and waves.

    A convolution is the matrix product M x N x K with M = batch * output pixels, N = output channels and
    K = input channels * window. For the best of a few tile shapes (m, n)::

        waves = ceil(ceil(M / m) * ceil(N / n) / multiprocessors)
        compute = waves * m * n * (K + 32) * 2 / (peak / multiprocessors * share(m, n))
        (with fewer tiles than multiprocessors, K is divided among several)
        memory = (input + weights + output + residual bytes) / (0.78 bandwidth)
        latency = max(compute, memory) + 3 us launch

    Everything else moves its bytes once. The shares are round figures of what such kernels
    commonly reach, not fitted to a network. One exact latency a point: quartiles equal the median, samples are 0.

    Args:
        datasheet: the device.
        batch: images per call.
        precision: one of those in the datasheet.
        fused: whether BatchNorm, activation and addition run within the convolution, as in a deployment runtime;
            False: each is a pass over memory, as in a framework's eager mode.

    Raises:
        UsageError: the device has no such precision, or the batch is not in 1..65536.
    """

    name = "modelled"
    together = 1024

    def __init__(self, datasheet: Datasheet, *, batch: int = 1, precision: str = "fp32", fused: bool = True) -> None:
        if precision not in datasheet.tflops:
            raise UsageError(
                f"{datasheet.label} cannot be modelled in {precision}",
                f"its datasheet gives {', '.join(datasheet.tflops)}",
                "Choose one of these",
            )
        if not 1 <= batch <= 1 << 16:
            raise UsageError("The device cannot be modelled", f"the batch is {batch}", "Choose 1 to 65536")
        self.datasheet, self.batch, self.precision, self.fused = datasheet, batch, precision, fused
        self._flops_a_ms = datasheet.tflops[precision] * 1e9
        self._bytes_a_ms = datasheet.memory_gb_s * 1e6 * _BANDWIDTH_SHARE
        self._element = _BYTES[precision]
        self._tensor_cores = precision != "fp32"

    def header(self) -> Header:
        d = self.datasheet
        return Header(
            device={
                "name": d.label, "kind": "cuda", "multiprocessors": d.multiprocessors, "boost_mhz": d.boost_mhz,
                "tflops": d.tflops[self.precision], "memory_gb_s": d.memory_gb_s, "l2_mb": d.l2_mb,
                "datasheet": d.source,
            },
            backend=self.name,
            backend_version="1",
            precision=self.precision,
            layout="nhwc" if self._tensor_cores else "nchw",
            batch=self.batch,
            source="modelled",
            how={
                "method": "roofline with tile and wave quantisation, computed from the datasheet; not a measurement",
                "fused": self.fused,
                "launch_ms": _LAUNCH_MS,
                "steps": {f: self._steps().to_json() for f in ("conv", "rows")},
            },
        )  # fmt: skip

    def _steps(self) -> Steps:
        return Steps(align=8 if self._tensor_cores else 1, block_out=_SMALLEST_COLUMNS)

    def steps(self, kernel: Kernel) -> Steps:
        return self.header().steps(kernel)

    def refusal(self, kernel: Kernel) -> str | None:
        return None

    def measure(self, requests: Sequence[Request]) -> list[Point]:
        """One computed point a request."""
        points = []
        for r in requests:
            ms = self.latency_ms(r.kernel, r.c_in, r.c_out)
            points.append(Point(r.kernel, r.c_in, r.c_out, ms, ms, ms, 0))
        return points

    def latency_ms(self, kernel: Kernel, c_in: int, c_out: int) -> float:
        """The formula of the class, in ms."""
        pixels_in, pixels_out = prod(kernel.spatial), prod(output_spatial(kernel))
        width = c_in if kernel.groups else kernel.group_width
        c_in, c_out = kernel.of_tensor(c_in), kernel.of_tensor(c_out)
        read, made = self.batch * pixels_in * c_in, self.batch * pixels_out * c_out
        window = prod(kernel.kernel_size) if kernel.op.startswith("conv") else 1
        weights = 0
        compute = 0.0
        if kernel.op in ("conv", "conv_transpose", "linear", "matmul"):
            if kernel.op == "conv_transpose":  # every input pixel is spread over a window
                pixels_out = pixels_in
            rows, group = self.batch * pixels_out, width or c_in
            weights = c_out * group * window
            if kernel.op == "matmul":
                products = self.batch * kernel.spatial[0]
                rows, weights = self.batch * pixels_in, products * c_in * c_out
            if width is None:
                compute = self._product_ms(rows, c_out, c_in * window)
                if self._tensor_cores and (c_in % 8 or c_out % 8):
                    compute *= _MISALIGNED
            elif width < 16:
                fp32 = self.datasheet.tflops["fp32"] * 1e9
                compute = 2 * made * group * window / (fp32 * _DEPTHWISE_SHARE)
            else:
                groups = max(1, c_in // width)
                compute = groups * self._product_ms(rows, c_out // groups, group * window, self._share_of(groups))
        if kernel.op == "attention":  # two products: queries with keys, and their shares with values
            products, rows, keys = self.batch * kernel.spatial[0], kernel.spatial[-1], prod(kernel.kernel_size)
            weights = products * keys * (c_in + c_out)  # keys and values are read like weights
            compute = self._product_ms(products * rows, keys, c_in) + self._product_ms(products * rows, c_out, keys)
        residual = made * kernel.fused.count("add")
        if kernel.op in ("add", "mul"):
            residual += made if kernel.op == "add" else 0
        memory = (read + weights + made + residual) * self._element / self._bytes_a_ms
        return max(compute, memory) + _LAUNCH_MS + (0.0 if self.fused else self._passes_ms(kernel, made))

    def _passes_ms(self, kernel: Kernel, made: int) -> float:
        """What runs behind a convolution in eager mode: BatchNorm and activation read and write, addition reads two."""
        if kernel.op not in ("conv", "conv_transpose"):
            return 0.0
        moved = 2 + sum(1 if name == "add" else 2 for name in kernel.fused)
        return moved * made * self._element / self._bytes_a_ms + (1 + len(kernel.fused)) * _LAUNCH_MS

    def _share_of(self, groups: int) -> float:
        return min(1.0, 4 / groups)  # the products of a few groups run side by side and share the waves

    def _product_ms(self, m: int, n: int, k: int, waves_share: float = 1.0) -> float:
        sms = self.datasheet.multiprocessors
        best = float("inf")
        for rows, columns, share in _TILES:
            tiles = ceil(m / rows) * ceil(n / columns)
            # Too few tiles to fill the device: the reduction is divided among several blocks.
            split = max(1, min(sms // tiles, k // _SHORTEST_SPLIT))
            tiles *= split
            depth = k / split + _PROLOGUE
            waves = max(ceil(tiles / sms * waves_share), tiles / sms * waves_share)
            best = min(best, waves * rows * columns * depth * 2 / (self._flops_a_ms / sms * share))
        return best
