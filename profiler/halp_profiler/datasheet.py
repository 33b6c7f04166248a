"""Facts about devices, for tables of devices that are not at hand.

Every entry names the document that its figures are from, and which of them were compared with independent
reproductions of that document's tables. All fp32 peaks agree with 2 operations x lanes x multiprocessors x boost
clock (a test holds this).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Datasheet:
    """One device as its maker describes it.

    Attributes:
        name: short name, as typed on a command line.
        label: the maker's name.
        multiprocessors: streaming multiprocessors.
        boost_mhz: boost clock.
        tflops: dense peak per precision, in 1e12 floating-point operations a second (2 a multiply-accumulate).
        memory_gb_s: peak bandwidth of the memory, in 1e9 bytes a second.
        l2_mb: second-level cache.
        capability: compute capability.
        source: where the figures are from, and what of them was compared.
    """

    name: str
    label: str
    multiprocessors: int
    boost_mhz: int
    tflops: Mapping[str, float]
    memory_gb_s: float
    l2_mb: float
    capability: str
    source: str


_GA102 = "NVIDIA Ampere GA102 GPU architecture whitepaper v2, dense, fp16 with fp32 accumulation"
_ADA = "NVIDIA Ada GPU architecture whitepaper v2, dense, fp16 with fp32 accumulation"
_TURING = "NVIDIA Turing GPU architecture whitepaper (WP-09183-001), reference clocks, fp16 with fp32 accumulation"
_HOPPER = "NVIDIA H100 GPU architecture whitepaper, dense, tensor cores at their own clock of 1830 MHz"

_ALL = (
    Datasheet("titanv", "NVIDIA TITAN V", 80, 1455, {"fp32": 14.9, "fp16": 110.0}, 652.8, 4.5, "7.0",
              "AnandTech's Titan V specification table; fp32 as 2 x 5120 lanes x boost clock (the press says 13.8); "
              "multiprocessors, clock and bandwidth compared"),
    Datasheet("v100", "NVIDIA V100 SXM2", 80, 1530, {"fp32": 15.7, "fp16": 125.0}, 900.0, 6.0, "7.0",
              "NVIDIA Tesla V100 GPU architecture whitepaper (WP-08608-001), SXM2; multiprocessors, bandwidth and L2 "
              "compared; fp32 as 2 x 5120 lanes x boost clock"),
    Datasheet("rtx2080ti", "NVIDIA GeForce RTX 2080 Ti", 68, 1545, {"fp32": 13.4, "fp16": 53.8}, 616.0, 5.5, "7.5",
              f"{_TURING}; multiprocessors, clock, fp32 and bandwidth compared"),
    Datasheet("rtx3090", "NVIDIA GeForce RTX 3090", 82, 1695, {"fp32": 35.6, "tf32": 35.6, "fp16": 71.0}, 936.0, 6.0,
              "8.6", f"{_GA102}; multiprocessors, fp32 and L2 compared"),
    Datasheet("rtx4090", "NVIDIA GeForce RTX 4090", 128, 2520, {"fp32": 82.6, "tf32": 82.6, "fp16": 165.2}, 1008.0,
              72.0, "8.9", f"{_ADA}; multiprocessors, clock, fp32 and bandwidth compared; for the L2's 73728 KB one "
              "reproduction gives 96 MB, which is the full chip's"),
    Datasheet("a100", "NVIDIA A100 SXM4 80GB", 108, 1410, {"fp32": 19.5, "tf32": 156.0, "fp16": 312.0, "bf16": 312.0},
              2039.0, 40.0, "8.0", "NVIDIA A100 datasheet and Ampere architecture whitepaper, dense; all compared"),
    Datasheet("h100", "NVIDIA H100 SXM5", 132, 1980, {"fp32": 66.9, "tf32": 494.7, "fp16": 989.4, "bf16": 989.4},
              3350.0, 50.0, "9.0", f"{_HOPPER}; all compared"),
    Datasheet("h200", "NVIDIA H200 SXM", 132, 1980, {"fp32": 66.9, "tf32": 494.7, "fp16": 989.4, "bf16": 989.4},
              4800.0, 50.0, "9.0", f"NVIDIA H200 datasheet; chip as in the {_HOPPER}; all but memory compared"),
    Datasheet("orin", "NVIDIA Jetson AGX Orin 64GB", 16, 1300, {"fp32": 5.3, "tf32": 21.3, "fp16": 42.5}, 204.8, 4.0,
              "8.7", "NVIDIA Jetson AGX Orin series technical brief, GPU only, dense; multiprocessors, fp32 and L2 "
              "compared"),
    Datasheet("xavier", "NVIDIA Jetson AGX Xavier", 8, 1377, {"fp32": 1.41, "fp16": 11.3}, 136.5, 0.5, "7.2",
              "NVIDIA Jetson AGX Xavier series datasheet, GPU only; multiprocessors compared, the rest not"),
)  # fmt: skip

DATASHEETS: Mapping[str, Datasheet] = {d.name: d for d in _ALL}
"""Short name -> facts."""
