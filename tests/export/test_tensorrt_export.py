"""TensorRT, by a stand-in that records what it is asked; and what is said where a runtime is missing."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from halp_iee.cli.main import run as halp_iee
from halp_iee.errors import DeviceError, GraphError
from halp_iee.export import tensorrt
from tests.export.conftest import Run, listing


class Recorder:
    def __init__(self, name: str, log: list[str], **answers: Any) -> None:
        self._name, self._log, self._answers = name, log, answers

    def __getattr__(self, name: str) -> Any:
        if name in self._answers:
            return self._answers[name]
        return lambda *args, **kwargs: self._log.append(f"{self._name}.{name}{args}") or 0


def fake_tensorrt(version: str, log: list[str], *, parses: bool = True, plan: bytes | None = b"plan") -> Any:
    """As much of API 10 or 11 as is used."""
    trt = types.ModuleType("tensorrt")
    trt.__version__ = version
    cache = Recorder("cache", log, serialize=lambda: b"timings")
    config = Recorder("config", log, create_timing_cache=lambda known: log.append(f"cache {known!r}") or cache,
                      get_timing_cache=lambda: cache)  # fmt: skip
    tensor = types.SimpleNamespace(name="x", shape=(-1, 1, 32, 32))
    network = types.SimpleNamespace(num_inputs=1, get_input=lambda i: tensor)
    builder = Recorder(
        "builder", log, create_network=lambda flags: log.append(f"network {flags}") or network,
        create_builder_config=lambda: config, create_optimization_profile=lambda: Recorder("profile", log),
        build_serialized_network=lambda *_: plan,
    )  # fmt: skip
    parser = Recorder("parser", log, parse=lambda data: parses, num_errors=1, get_error=lambda i: "no such operator")
    trt.Logger = types.SimpleNamespace(ERROR=1, __call__=None)
    trt.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    trt.Builder = lambda logger: builder
    trt.OnnxParser = lambda network, logger: parser
    trt.MemoryPoolType = types.SimpleNamespace(WORKSPACE="workspace")
    ten = version.startswith("10")
    trt.NetworkDefinitionCreationFlag = types.SimpleNamespace(**({"STRONGLY_TYPED": 1} if ten else {}))
    trt.BuilderFlag = types.SimpleNamespace(TF32="tf32", **({"FP16": "fp16"} if ten else {}))
    return trt


@pytest.mark.parametrize("version", ["10.9.0", "11.4.0"])
def test_engines_are_strongly_typed_in_both_versions_and_keep_their_timings(the_run, tmp_path, version) -> None:
    log: list[str] = []
    trt = fake_tensorrt(version, log)
    onnx_file, cache = the_run.root / "model.onnx", tmp_path / "timing"
    files = tensorrt.write_engine(
        trt, onnx_file, tmp_path / "net.engine", metadata={"a": "b"}, exact=True, batches=(1, 4, 32), timing_cache=cache
    )
    assert [file.read_bytes()[:4] for file in files[:1]] == [b"plan"]
    assert json.loads(files[1].read_text()) == {"a": "b", "tensorrt": version}
    assert ("network 2" if version.startswith("10") else "network 0") in log
    assert "config.clear_flag('tf32',)" in log
    assert "profile.set_shape('x', (1, 1, 32, 32), (4, 1, 32, 32), (32, 1, 32, 32))" in log
    assert not any("fp16" in entry for entry in log)  # version 11 has no such flag
    assert cache.read_bytes() == b"timings"
    tensorrt.write_engine(trt, onnx_file, tmp_path / "net.engine", metadata={}, exact=False, timing_cache=cache)
    assert "cache b'timings'" in log
    assert log.count("config.clear_flag('tf32',)") == 1


def test_what_tensorrt_cannot_parse_or_build_is_said(the_run: Run, tmp_path: Path) -> None:
    for trt, words in (
        (fake_tensorrt("10.9", [], parses=False), "no such operator"), (fake_tensorrt("10.9", [], plan=None), "no way"),
    ):  # fmt: skip
        with pytest.raises(GraphError, match=words):
            tensorrt.write_engine(trt, the_run.root / "model.onnx", tmp_path / "x.engine", metadata={}, exact=True)
    assert list(tmp_path.iterdir()) == []


def test_without_tensorrt_the_command_for_a_machine_that_has_it_is_told(a_run: Run, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    args = ["export", str(a_run.root), "--format", "tensorrt", "--precision", "fp16", "--dynamic-batch"]
    before = listing(a_run.root)
    assert halp_iee(args) == 3
    said = capsys.readouterr().err
    assert f"halp-iee export {a_run.root} --precision fp16 --dynamic-batch --format tensorrt" in said
    assert "trtexec --onnx=exported.onnx" in said
    assert listing(a_run.root) == before
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("11.4", []))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="GPU"):
        tensorrt.require_tensorrt("x", "y")


def test_without_openvino_its_remedy_is_told(a_run: Run, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert halp_iee(["export", str(a_run.root), "--format", "openvino"]) == 3
    assert "halp-iee[openvino]" in capsys.readouterr().err


# -- the proof of deployment --
