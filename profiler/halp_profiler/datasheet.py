"""Facts about devices, for tables of devices that are not at hand.

Every entry says where its figures are from, and whether they were compared with that document. All of
them agree with 2 operations x lanes x multiprocessors x boost clock (a test holds this).
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
        source: where the figures are from, and whether that was checked.
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


_UNCHECKED = "not yet checked against the document"

_ALL = (
    Datasheet("titanv", "NVIDIA TITAN V", 80, 1455, {"fp32": 14.9, "fp16": 110.0}, 652.8, 4.5, "7.0",
              "AnandTech's Titan V specification table; fp32 as 2 x 5120 lanes x boost clock (the press says 13.8)"),
    Datasheet("v100", "NVIDIA V100 SXM2", 80, 1530, {"fp32": 15.7, "fp16": 125.0}, 900.0, 6.0, "7.0",
              f"NVIDIA V100 datasheet; {_UNCHECKED}"),
    Datasheet("rtx2080ti", "NVIDIA GeForce RTX 2080 Ti", 68, 1545, {"fp32": 13.4, "fp16": 53.8}, 616.0, 5.5, "7.5",
              f"NVIDIA Turing whitepaper; fp16 with fp32 accumulation; {_UNCHECKED}"),
    Datasheet("rtx3090", "NVIDIA GeForce RTX 3090", 82, 1695, {"fp32": 35.6, "tf32": 35.6, "fp16": 71.0}, 936.0, 6.0,
              "8.6", f"NVIDIA GA102 whitepaper; fp16 with fp32 accumulation, dense; {_UNCHECKED}"),
    Datasheet("rtx4090", "NVIDIA GeForce RTX 4090", 128, 2520, {"fp32": 82.6, "tf32": 82.6, "fp16": 165.2}, 1008.0,
              72.0, "8.9", f"NVIDIA Ada whitepaper; fp16 with fp32 accumulation, dense; {_UNCHECKED}"),
    Datasheet("a100", "NVIDIA A100 SXM4 80GB", 108, 1410, {"fp32": 19.5, "tf32": 156.0, "fp16": 312.0, "bf16": 312.0},
              2039.0, 40.0, "8.0", f"NVIDIA A100 datasheet, dense; {_UNCHECKED}"),
    Datasheet("h100", "NVIDIA H100 SXM5", 132, 1980, {"fp32": 66.9, "tf32": 494.7, "fp16": 989.4, "bf16": 989.4},
              3350.0, 50.0, "9.0", f"NVIDIA H100 datasheet, dense; {_UNCHECKED}"),
    Datasheet("h200", "NVIDIA H200 SXM", 132, 1980, {"fp32": 66.9, "tf32": 494.7, "fp16": 989.4, "bf16": 989.4},
              4800.0, 50.0, "9.0", f"NVIDIA H200 datasheet, dense; {_UNCHECKED}"),
    Datasheet("orin", "NVIDIA Jetson AGX Orin 64GB", 16, 1300, {"fp32": 5.3, "tf32": 21.3, "fp16": 42.5}, 204.8, 4.0,
              "8.7", f"NVIDIA Jetson AGX Orin technical brief; GPU only, dense; {_UNCHECKED}"),
    Datasheet("xavier", "NVIDIA Jetson AGX Xavier", 8, 1377, {"fp32": 1.41, "fp16": 11.3}, 136.5, 0.5, "7.2",
              f"NVIDIA Jetson AGX Xavier datasheet; GPU only; {_UNCHECKED}"),
)  # fmt: skip

DATASHEETS: Mapping[str, Datasheet] = {d.name: d for d in _ALL}
"""Short name -> facts."""
