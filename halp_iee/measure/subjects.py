"""From a word on the command line to a network that can be measured in one runtime or another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from halp_iee.errors import ArtifactError, UsageError
from halp_iee.measure.engine import Engine
from halp_iee.measure.openvino import OpenVinoEngine
from halp_iee.measure.runtime import OnnxEngine

if TYPE_CHECKING:
    from torch import Tensor, nn

RUNTIMES = ("onnxruntime", "openvino", "torch")
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_NETWORKS = {".onnx": "onnx", ".ort": "onnx", ".xml": "openvino", ".pt2": "program"}

Build = Callable[[], "tuple[nn.Module, Tensor]"]


@dataclass
class Subject:
    """A network, known as a file, as a way to build it in torch, or as both.

    Attributes:
        label: as the person wrote it.
        file: a file that is there already; None where it would be exported.
        build: the module and an input of one image; None for a file that is nobody's run.
        batch: that ``file`` is fixed to, where it is known.
    """

    label: str
    file: Path | None = None
    build: Build | None = None
    batch: int | None = None
    _built: tuple[nn.Module, Tensor] | None = field(default=None, repr=False)
    _exported: dict[int, Path] = field(default_factory=dict, repr=False)

    @property
    def kind(self) -> str:
        return "onnx" if self.file is None else _NETWORKS.get(self.file.suffix.lower(), "onnx")

    def module(self) -> tuple[nn.Module, Tensor]:
        """The network in torch, and one image.

        Raises:
            UsageError: it is a file alone.
        """
        if self.build is None:
            raise UsageError(
                f"{self.label} cannot run in torch", "it is a file of another kind",
                "Name the run, or a network as in --model",
            )  # fmt: skip
        if self._built is None:
            self._built = self.build()
        return self._built

    def onnx(self, batch: int | None, folder: Path) -> Path:
        """An ONNX file of it with this batch: its own where that fits, else one that is exported into ``folder``."""
        fits = batch is None or self.batch is None or self.batch == batch
        if self.file is not None and (fits or self.build is None):
            return self.file
        from halp_iee.export.onnx import export_onnx

        size = batch or 1
        if size not in self._exported:
            model, image = self.module()
            path = folder / f"{len(list(folder.iterdir()))}.onnx"
            self._exported[size] = export_onnx(model, image.repeat(size, *[1] * (image.dim() - 1)), path).path
        return self._exported[size]

    def engine(self, runtime: str, *, batch: int | None, threads: int, device: str, folder: Path) -> Engine:
        """It, ready to run.

        Raises:
            ArtifactError, DeviceError, GraphError: the file, the runtime or the device is not usable.
            UsageError: this runtime cannot run it.
        """
        if runtime == "torch":
            import torch

            from halp_iee.measure.torch_engine import TorchEngine

            torch.set_num_threads(threads)
            if self.kind == "program":
                assert self.file is not None, "only a file is of this kind"
                return TorchEngine.load(self.file, device=device)
            model, image = self.module()
            return TorchEngine.of_module(model, [image], device=device)
        if self.kind == "program" or (self.kind == "openvino" and runtime != "openvino"):
            raise UsageError(
                f"{self.label} cannot run in {runtime}", "it is a file of another runtime",
                f"Leave --runtime {runtime} out for it",
            )  # fmt: skip
        if runtime == "openvino":
            if device != "cpu":
                raise UsageError(f"OpenVINO does not run on {device}", "it is used for CPUs here", "Use onnxruntime")
            file = self.file if self.kind == "openvino" else self.onnx(batch, folder)
            assert file is not None, "an IR is a file"
            return OpenVinoEngine.load(file, threads=threads)
        kind, _, index = device.partition(":")
        file = self.onnx(batch, folder)
        return OnnxEngine.load(file, threads=threads, provider=_PROVIDERS[kind], device=int(index or 0))


def subject(word: str, image_shape: tuple[int, ...] | None = None) -> Subject:
    """What a person named: a run's directory, a file, or a network as in ``--model``.

    Args:
        word: of the command line.
        image_shape: of one image, for networks by name; their own when not given.

    Raises:
        ArtifactError: there is no such file, or its kind is not known.
        HalpError: the run is not finished.
        UsageError: there is no such network.
    """
    path = Path(word)
    if path.is_dir():
        return _of_run(word, path)
    if path.is_file() and ".py" not in path.suffix:
        return _of_file(word, path)
    if path.suffix.lower() in (*_NETWORKS, ".engine", ".plan") or (("/" in word) and ".py:" not in word):
        raise ArtifactError(f"Cannot measure {word}", "there is no such file or directory", "Check the path")
    from halp_iee import models

    shape = image_shape or models.default_input_shape(word)

    def build() -> tuple[nn.Module, Tensor]:
        import torch

        return models.build(word).eval(), torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))

    return Subject(word, build=build)


def _of_run(word: str, path: Path) -> Subject:
    from halp_iee.run.reload import check_unchanged, finished_run, slim_network

    run, result = finished_run(path)

    def build() -> tuple[nn.Module, Tensor]:
        model, example = slim_network(run, result)
        return model, example[:1]

    if not run.onnx.is_file():
        return Subject(word, build=build)
    check_unchanged(run.onnx, result)
    return Subject(word, run.onnx, build, int(result["batch"]))


def _of_file(word: str, path: Path) -> Subject:
    if path.suffix.lower() in (".engine", ".plan"):
        raise UsageError(
            f"Cannot measure {word}", "reading a TensorRT engine runs code that is in it",
            "Measure it with trtexec --loadEngine on the machine that built it",
        )  # fmt: skip
    if path.suffix.lower() in (".safetensors", ".pt", ".pth", ".bin"):
        raise UsageError(
            f"Cannot measure {word}", "it holds weights, not a network", "Name the run's directory, or an ONNX file"
        )
    if path.name == "dense.onnx" and (path.parent / "result.json").is_file():
        return _dense_of_run(word, path)
    return Subject(word, path)


def _dense_of_run(word: str, path: Path) -> Subject:
    """The dense network of a run: its file has the run's batch, for others it is built anew.

    Its weights are then other ones; latency does not depend on them.
    """
    from halp_iee.run.reload import dense_network, finished_run

    _, result = finished_run(path.parent)

    def build() -> tuple[nn.Module, Tensor]:
        model, example = dense_network(result)
        return model.eval(), example[:1]

    return Subject(word, path, build, int(result["batch"]))
