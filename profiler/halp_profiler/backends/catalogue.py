"""Which backends there are, what each needs, and what of that is missing here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from halp_profiler.backends.base import Backend, Settings
from halp_profiler.devices import Device
from halp_profiler.errors import DeviceError, UsageError

Make = Callable[[Device, Settings], Backend]


@dataclass(frozen=True)
class Entry:
    """One backend.

    Attributes:
        name: as typed, and as it stands in a table's header.
        what: in words.
        kinds: of device that it reaches, ``cpu`` or ``cuda``.
        modules: that must be importable -> the package that brings it.
        precisions: that it knows.
        make: the backend itself; imports its runtime.
    """

    name: str
    what: str
    kinds: tuple[str, ...]
    modules: Mapping[str, str]
    precisions: tuple[str, ...]
    make: Make


def missing(entry: Entry, device: Device) -> str | None:
    """What this backend lacks to time ``device``: a device of its kind, or a package; None where nothing is seen to.

    Nothing is imported, so a driver or a library that does not load shows only when the backend is made.
    """
    if device.kind not in entry.kinds:
        return f"it runs on {' and '.join(entry.kinds)} only"
    if not device.attached:
        return "it is not attached to this machine"
    for module, package in entry.modules.items():
        if find_spec(module) is None:
            return f"the package {package} is not installed"
    if entry.name in ("onnxruntime-cuda", "onnxruntime-tensorrt") and not _installed("onnxruntime-gpu"):
        return "the package onnxruntime-gpu is not installed"
    return None


def choose(device: Device, name: str | None) -> Entry:
    """The backend of that name, or the first that can time ``device``.

    Raises:
        UsageError: no backend has this name.
        DeviceError: it lacks something, or nothing can time the device; says which package or device is missing.
    """
    if name is not None:
        if name not in CATALOGUE:
            why = f"known are {', '.join(CATALOGUE)}"
            raise UsageError(f"No backend is known as {name!r}", why, "`halp-iee devices` lists them")
        if why_not := missing(CATALOGUE[name], device):
            raise DeviceError(
                f"{device.label} cannot be timed with {name}", why_not, _remedy(CATALOGUE[name], device, why_not)
            )
        return CATALOGUE[name]
    usable = [e for e in CATALOGUE.values() if device.kind in e.kinds and missing(e, device) is None]
    if not usable:
        of_kind = [e for e in CATALOGUE.values() if device.kind in e.kinds]
        why = "; ".join(f"{e.name}: {missing(e, device)}" for e in of_kind)
        raise DeviceError(f"Nothing can time {device.label}", why, _remedy(of_kind[0], device, why))
    return usable[0]


def _remedy(entry: Entry, device: Device, why: str) -> str:
    if not device.attached:
        return "Attach it, or leave the source out for a modelled table"
    if device.kind not in entry.kinds:
        usable = [e.name for e in CATALOGUE.values() if device.kind in e.kinds]
        return f"For this device use {', '.join(usable)}"
    packages = [p for m, p in entry.modules.items() if find_spec(m) is None]
    if "onnxruntime-gpu" in why and not packages:
        return "Replace it: pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
    return f"Install it: pip install {' '.join(packages)}"


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _ort_cpu(device: Device, s: Settings) -> Backend:
    from halp_profiler.backends.ort_cpu import OrtCpu

    if s.layout is not None:
        raise UsageError("ONNX Runtime cannot run this", "it chooses its layout on a CPU", "Leave --layout out")
    return OrtCpu(threads=s.threads, batch=s.batch)


def _ort_gpu(name: str) -> Make:
    def make(device: Device, s: Settings) -> Backend:
        from halp_profiler.backends.ort_gpu import OrtGpu

        return OrtGpu(name, device, s)

    return make


def _openvino(device: Device, s: Settings) -> Backend:
    from halp_profiler.backends.openvino_cpu import OpenVino

    return OpenVino(device, s)


def _torch(mode: str) -> Make:
    def make(device: Device, s: Settings) -> Backend:
        from halp_profiler.backends.torch_runs import TorchRuns

        return TorchRuns(device, s, mode)

    return make


def _tensorrt(device: Device, s: Settings) -> Backend:
    from halp_profiler.backends.tensorrt_runs import TensorRt

    return TensorRt(device, s)


_ORT = {"onnxruntime": "onnxruntime", "onnx": "onnx"}
_ORT_GPU = {"onnxruntime": "onnxruntime-gpu", "onnx": "onnx"}
_TORCH = {"torch": "torch"}
_FLOATS = ("fp32", "tf32", "fp16", "bf16")

_ALL = (
    Entry("onnxruntime-cpu", "ONNX Runtime on the CPU", ("cpu",), _ORT, ("fp32",), _ort_cpu),
    Entry("openvino", "OpenVINO on the CPU", ("cpu",), {"openvino": "openvino"}, ("fp32", "fp16", "bf16"), _openvino),
    Entry("onnxruntime-cuda", "ONNX Runtime, CUDA provider", ("cuda",), _ORT_GPU, _FLOATS[:3],
          _ort_gpu("onnxruntime-cuda")),
    Entry("torch-cudagraph", "torch, replaying CUDA graphs", ("cuda",), _TORCH, _FLOATS, _torch("cudagraph")),
    Entry("torch", "torch, eager", ("cpu", "cuda"), _TORCH, _FLOATS, _torch("eager")),
    Entry("torch-compiled", "torch, compiled by Inductor", ("cpu", "cuda"), _TORCH, _FLOATS, _torch("compiled")),
    Entry("onnxruntime-tensorrt", "ONNX Runtime, TensorRT provider", ("cuda",),
          {**_ORT_GPU, "tensorrt": "tensorrt"}, _FLOATS, _ort_gpu("onnxruntime-tensorrt")),
    Entry("tensorrt", "TensorRT 10 or 11", ("cuda",), {"tensorrt": "tensorrt", "onnx": "onnx", "torch": "torch"},
          _FLOATS, _tensorrt),
)  # fmt: skip

CATALOGUE: Mapping[str, Entry] = {e.name: e for e in _ALL}
"""Name -> backend; of several that could time a device the first is taken when none is named."""
