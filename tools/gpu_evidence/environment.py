"""The machine: what a figure means depends on it."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from gpu_evidence.part import Part

PACKAGES = (
    "torch", "torchvision", "triton", "onnx", "onnxruntime", "numpy", "scipy", "scikit-learn", "pandas", "accelerate",
    "timm", "pydantic", "safetensors", "nvidia-ml-py",
)  # fmt: skip
ASKED = (
    "name,driver_version,memory.total,clocks.max.sm,clocks.sm,power.limit,temperature.gpu,compute_cap,mig.mode.current"
)


def environment(part: Part) -> None:
    from halp_profiler.devices import host_fingerprint

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    gpu: dict[str, Any] | None = None
    if part.cuda:
        facts = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info(0)
        gpu = {
            "name": facts.name, "capability": f"{facts.major}.{facts.minor}", "processors": facts.multi_processor_count,
            "memory_gb": total / 2**30, "free_gb": free / 2**30, "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(), "driver_says": _smi(),
        }  # fmt: skip
    host = host_fingerprint()
    part.row(
        gpu=gpu, processor=str(host["name"]), cores=host["cores"], system=str(host["system"]),
        python=platform.python_version(), packages=packages, tiny=part.tiny,
    )  # fmt: skip


def _smi() -> dict[str, str] | None:
    command = ["nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(ASKED.split(","), map(str.strip, done.stdout.strip().split(",")), strict=False))
