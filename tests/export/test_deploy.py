"""What is deployed computes what the run's network computes, accuracy included; or there is no file."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from halp_iee.cli.main import run as halp_iee
from halp_iee.errors import ArtifactError, DeviceError, GraphError, ParityError, UsageError
from halp_iee.export import deploy as deploying
from halp_iee.export import tensorrt, torch_export
from halp_iee.export.deploy import deploy, exports_of
from halp_iee.export.quantise import agreement, quantise
from halp_iee.export.source import MAX_DROP, SUFFIX, Options
from halp_iee.measure.accuracy import Accuracy
from halp_iee.measure.runtime import OnnxEngine
from halp_iee.run.directory import RunDirectory, sha256
from halp_iee.run.reload import slim_network
from halp_iee.train.data import load
from tests.export.conftest import NETWORK, Run, make_run

SERVE = Path(__file__).parents[2] / "examples" / "serve_onnx.py"
try:
    import openvino  # noqa: F401

    HAS_OPENVINO = True
except ImportError:
    HAS_OPENVINO = False
needs_openvino = pytest.mark.skipif(not HAS_OPENVINO, reason="OpenVINO is an extra that is not installed here")


def listing(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


@pytest.mark.parametrize(
    ("form", "precision", "dynamic"),
    [
        ("onnx", "fp32", False), ("onnx", "fp32", True), ("onnx", "fp16", False), ("onnx", "int8", True),
        ("torch-export", "fp32", False), ("torch-export", "fp32", True), ("torch-export", "fp16", False),
        ("safetensors", "fp32", False),
        pytest.param("openvino", "fp32", True, marks=needs_openvino),
        pytest.param("openvino", "fp16", False, marks=needs_openvino),
        pytest.param("openvino", "int8", False, marks=needs_openvino),
    ],
)  # fmt: skip
def test_every_format_and_precision_keeps_the_accuracy_of_the_run(a_run: Run, form, precision, dynamic) -> None:
    before = listing(a_run.root)
    out = a_run.root / f"net{SUFFIX[form]}"
    done = deploy(RunDirectory(a_run.root), a_run.result, out, Options(form, precision, dynamic))
    assert out.is_file()
    assert abs(done.top1 - a_run.result["top1"]) <= MAX_DROP[precision]
    assert done.images == 500
    assert done.bytes == sum(Path(file).stat().st_size for file in done.files)
    new = listing(a_run.root) - before
    assert new == {Path(file).name for file in done.files} | {"exports.json"}
    assert [one["path"] for one in exports_of(RunDirectory(a_run.root))] == [str(out)]
    if precision == "fp32":
        assert done.max_error <= 1e-4
        assert done.latency_ms is None
    else:
        assert done.latency_ms > 0
        assert done.latency_fp32_ms > 0
    if form == "onnx":
        held = {prop.key: prop.value for prop in onnx.load(str(out)).metadata_props}
        assert held["halp_iee.model"] == a_run.result["model"]
        assert held["halp_iee.precision"] == precision
        axis = onnx.load(str(out)).graph.input[0].type.tensor_type.shape.dim[0]
        assert bool(axis.dim_param) == dynamic
    if form == "torch-export":
        kinds = {weight.dtype for weight in torch_export.read_program(out).state_dict.values()} - {torch.int64}
        assert kinds == {torch.float16 if precision == "fp16" else torch.float32}
    elif precision == "fp16":
        params = sum(p.numel() for p in slim_network(RunDirectory(a_run.root), a_run.result)[0].parameters())
        single = deploy(RunDirectory(a_run.root), a_run.result, a_run.root / f"single{out.suffix}", Options(form))
        assert single.bytes - done.bytes > params  # two bytes less a weight; half needs some nodes more


def test_int8_weights_are_a_quarter_and_a_gate_that_is_not_met_leaves_nothing(a_run: Run, monkeypatch, capsys) -> None:
    assert halp_iee(["export", str(a_run.root), "--precision", "int8", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    kinds = {w.data_type for w in onnx.load(told["path"]).graph.initializer if np.prod(w.dims) > 40}
    assert onnx.TensorProto.INT8 in kinds
    assert onnx.TensorProto.FLOAT not in kinds
    before = listing(a_run.root)
    answers = iter([Accuracy(a_run.result["top1"], 0, 500), Accuracy(a_run.result["top1"] - 0.0301, 0, 500)])
    monkeypatch.setattr("halp_iee.measure.accuracy.top1", lambda *_: next(answers))
    args = ["export", str(a_run.root), "--precision", "int8", "--max-drop", "0.03", "--out"]
    assert halp_iee([*args, str(a_run.root / "other.onnx")]) == 1
    said = capsys.readouterr().err
    assert "3.01 points" in said
    assert "3.00 are allowed" in said
    assert "Nothing was written" in said
    assert listing(a_run.root) == before


def test_int8_without_data_is_calibrated_by_given_inputs_or_refused(tmp_path: Path, capsys) -> None:
    run = make_run(tmp_path / "run", "lraspp_mobilenet_v3_large", None, (3, 64, 64))
    args = ["export", str(run.root), "--precision", "int8", "--max-drop", "1", "--json"]
    assert halp_iee(args) == 2
    assert "--calibration" in capsys.readouterr().err
    np.save(tmp_path / "inputs.npy", np.random.default_rng(0).standard_normal((4, 3, 64, 64)).astype(np.float32))
    assert halp_iee([*args, "--calibration", str(tmp_path / "inputs.npy")]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] > 0
    np.save(tmp_path / "inputs.npy", np.zeros((4, 1, 64, 64)))
    assert halp_iee([*args, "--calibration", str(tmp_path / "inputs.npy")]) == 2
    assert "(4, 1, 64, 64)" in capsys.readouterr().err
    assert halp_iee(["export", str(run.root), "--json"]) == 0  # a segmentation network, parity on random inputs
    assert json.loads(capsys.readouterr().out)["top1"] is None


def test_quantisation_refuses_networks_that_lose_the_classes(the_run: Run, tmp_path: Path) -> None:
    images = next(iter(load("digits").train.batches(64)))[0].numpy()
    single = Path(the_run.root / "model.onnx")
    method = quantise(single, tmp_path / "q.onnx", images, metadata={"a": "b"})
    assert method in ("minmax", "percentile")
    one, other = OnnxEngine.load(single), OnnxEngine.load(tmp_path / "q.onnx")
    assert agreement(one, one, images) == 1.0
    assert agreement(one, other, images) > 0.95
    with pytest.raises(GraphError, match="Cannot quantise"):
        quantise(single, tmp_path / "q2.onnx", images[:0], metadata={})
    assert not (tmp_path / "q2.onnx").exists()


@pytest.mark.parametrize("form", ["onnx", "torch-export", "safetensors"])
def test_an_artifact_that_was_changed_since_is_refused(a_run: Run, form: str, capsys) -> None:
    tensors = load_file(a_run.root / "model.safetensors")
    with __import__("safetensors").safe_open(a_run.root / "model.safetensors", "pt") as file:
        recipe = file.metadata()
    name = next(name for name, value in tensors.items() if name == "head.weight")
    tensors[name] = -tensors[name]
    save_file(tensors, a_run.root / "model.safetensors", metadata=recipe)
    before = listing(a_run.root)
    assert halp_iee(["export", str(a_run.root), "--format", form]) == 1
    assert "not the one that the run measured" in capsys.readouterr().err
    assert listing(a_run.root) == before


def test_an_artifact_that_was_changed_is_found_without_data_too(tmp_path: Path, capsys) -> None:
    """There is no accuracy to compare with; what the run measured is its ONNX file."""
    (tmp_path / "net.py").write_text(NETWORK)
    made = make_run(tmp_path / "run", f"{tmp_path / 'net.py'}:build", None, (1, 20, 20))
    file = made.root / "model.safetensors"
    with __import__("safetensors").safe_open(file, "pt") as whole:
        recipe = whole.metadata()
    tensors = load_file(file)
    assert halp_iee(["export", str(made.root), "--format", "torch-export"]) == 0
    (made.root / "exported.pt2").unlink()
    tensors["head.weight"] = tensors["head.weight"] * 1.5
    save_file(tensors, file, metadata=recipe)
    before = listing(made.root)
    for form in ("onnx", "torch-export", "safetensors"):
        assert halp_iee(["export", str(made.root), "--format", form]) == 1
        assert "not the one that the run measured" in capsys.readouterr().err
    assert listing(made.root) == before


def test_a_change_too_small_to_be_seen_in_any_result_is_found(a_run: Run, capsys) -> None:
    names = ("model.onnx", "model.safetensors")
    noted = a_run.result | {"sha256": {name: sha256(a_run.root / name) for name in names}}
    (a_run.root / "result.json").write_text(json.dumps(noted))
    for name, command in (("model.onnx", "bench"), ("model.onnx", "export"), ("model.safetensors", "export")):
        file = a_run.root / name
        honest = file.read_bytes()
        file.write_bytes(honest[:-3] + bytes([honest[-3] ^ 1]) + honest[-2:])  # the last weight's least bits
        before = listing(a_run.root)
        assert halp_iee([command, str(a_run.root)]) == 1
        assert "not the one that the run measured" in capsys.readouterr().err
        assert listing(a_run.root) == before
        file.write_bytes(honest)


def test_a_runtime_that_computes_something_else_is_found_out(a_run: Run, monkeypatch) -> None:
    honest = OnnxEngine.run
    calls = 0

    def wrong(self: OnnxEngine, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        nonlocal calls
        calls += 1
        return [value + (0.01 * np.abs(value).max() if calls > 5 else 0) for value in honest(self, feeds)]

    monkeypatch.setattr(OnnxEngine, "run", wrong)
    before = listing(a_run.root)
    with pytest.raises(ParityError, match="check 6"):
        deploy(RunDirectory(a_run.root), a_run.result, a_run.root / "x.onnx", Options())
    assert listing(a_run.root) == before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--format", "safetensors", "--precision", "int8"], 2, "fp32"),
        (["--format", "torch-export", "--precision", "int8"], 2, "fp16"),
        (["--opset", "3"], 2, "13 to 26"),
        (["--format", "openvino", "--out", "x.onnx"], 2, ".xml"),
        (["--out", "nowhere/x.onnx"], 1, "does not exist"),
        (["--precision", "int8", "--calibration", "nowhere.npy"], 1, "nowhere.npy"),
        (["--max-drop", "2"], 2, "max-drop"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(a_run: Run, capsys, monkeypatch, arguments, code, words) -> None:
    monkeypatch.chdir(a_run.root)
    before = listing(a_run.root)
    assert halp_iee(["export", str(a_run.root), *arguments]) == code
    said = capsys.readouterr().err
    assert words in said
    assert "fault of" not in said
    assert listing(a_run.root) == before


def test_a_read_only_target_is_refused_before_the_work(a_run: Run, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    if os.geteuid() == 0:  # root may write anywhere but to a file system that is mounted read-only

        def refuse(*_: object, **__: object) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ArtifactError, match=r"permission|read-only"):
        deploy(RunDirectory(a_run.root), a_run.result, tmp_path / "locked" / "x.onnx", Options())
    assert list((tmp_path / "locked").iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(a_run: Run, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = listing(a_run.root)
    monkeypatch.setattr(deploying.os, "replace", full)
    with pytest.raises(ArtifactError, match="no space"):
        deploy(RunDirectory(a_run.root), a_run.result, a_run.root / "x.safetensors", Options("safetensors"))
    assert listing(a_run.root) == before


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_program_of_torch_export_holds_no_pickle_and_is_read_without_one(a_run: Run, monkeypatch, dynamic) -> None:
    out = a_run.root / "net.pt2"
    deploy(RunDirectory(a_run.root), a_run.result, out, Options("torch-export", dynamic_batch=dynamic))
    with zipfile.ZipFile(out) as archive:
        for info in archive.infolist():
            content = archive.read(info)
            assert content[:1] != b"\x80" or "/weights/" in info.filename, info.filename
            assert content[:2] != b"PK"
    assert torch_export.provenance_of(out)["halp_iee.data"] == "digits"

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(torch, "load", never)
    monkeypatch.setattr("pickle.load", never)
    monkeypatch.setattr("pickle.loads", never)
    program = torch_export.read_program(out)
    model, _ = slim_network(RunDirectory(a_run.root), a_run.result)
    x = torch.randn(7 if dynamic else 1, 1, 32, 32)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


def edited(path: Path, out: Path, change: Any) -> Path:
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename, old.read(info)))
    return out


def test_programs_that_could_run_code_are_not_read(the_run: Run, tmp_path: Path) -> None:
    model, example = slim_network(RunDirectory(the_run.root), the_run.result)
    from halp_iee.export.call import as_call

    program = torch_export.program_of(model, as_call(model, example), dynamic_batch=True)
    torch_export.write_program(program, tmp_path / "good.pt2", {})
    torch_export.read_program(tmp_path / "good.pt2")
    plain = torch.export.export(model, (example,))
    torch.export.save(plain, str(tmp_path / "pickled.pt2"))
    with pytest.raises(ArtifactError, match=r"sample_inputs"):
        torch_export.read_program(tmp_path / "pickled.pt2")

    def target(name: str, data: bytes) -> bytes:
        return data.replace(b"torch.ops.aten.relu.default", b"os.system") if "/models/" in name else data

    def size(name: str, data: bytes) -> bytes:
        if "/models/" not in name:
            return data
        graph = json.loads(data)
        text = json.dumps(graph)
        found = next(t for k, t in torch_export._strings(graph) if k == "expr_str")
        return text.replace(json.dumps(found), json.dumps("__import__('os').system('true')")).encode()

    for change, words in ((target, "os.system"), (size, "__import__")):
        path = edited(tmp_path / "good.pt2", tmp_path / "bad.pt2", change)
        with pytest.raises(ArtifactError, match=words):
            torch_export.read_program(path)
    for content in (b"", b"nonsense", (tmp_path / "good.pt2").read_bytes()[:500]):
        (tmp_path / "bad.pt2").write_bytes(content)
        with pytest.raises(ArtifactError, match="broken"):
            torch_export.read_program(tmp_path / "bad.pt2")


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("Symbol('s0', positive=True, integer=True)", True), ("s0", True), ("2*s0 + 1", True),
        ("Mul(Integer(2), Symbol('s0'))", True), ("FloorDiv(s0, 2)", True), ("Symbol('os.system(1)')", False),
        ("S('print(1)')", False), ("sympify('x')", False), ("().__class__", False), ("f'{x}'", False),
        ("[x for x in y]", False), ("lambda: 1", False), ("eval('1')", False), ("", False), ("(" * 500, False),
    ],
)  # fmt: skip
def test_sizes_are_arithmetic_or_refused(text: str, fine: bool) -> None:
    assert torch_export._is_arithmetic(text) is fine


# -- TensorRT, which is not here: a stand-in that records what it is asked --


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


def images_and_answers(run: Run, folder: Path) -> tuple[Path, list[int]]:
    images = next(iter(load("digits").test.batches(11)))[0]
    np.save(folder / "images.npy", images.numpy())
    with torch.no_grad():
        answers = slim_network(RunDirectory(run.root), run.result)[0](images).argmax(1).tolist()
    return folder / "images.npy", answers


def test_the_example_is_fifteen_lines_without_torch_or_this_package() -> None:
    tree = ast.parse(SERVE.read_text())
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    assert imported == {"sys", "numpy", "onnxruntime"}
    code = [line for line in SERVE.read_text().splitlines() if line.strip()]
    assert len(code) - len((ast.get_docstring(tree) or "").splitlines()) <= 17


@pytest.mark.parametrize(("precision", "dynamic"), [("fp32", False), ("fp16", True), ("int8", True)])
def test_a_process_without_torch_and_this_package_serves_the_network(a_run: Run, tmp_path, precision, dynamic) -> None:
    out = a_run.root / "net.onnx"
    deploy(RunDirectory(a_run.root), a_run.result, out, Options("onnx", precision, dynamic))
    images, answers = images_and_answers(a_run, tmp_path)
    barred = "import sys; sys.modules.update(torch=None, halp_iee=None, halp_profiler=None, torchvision=None)\n"
    code = f"{barred}import runpy; sys.argv = ['serve', {str(out)!r}, {str(images)!r}]; runpy.run_path({str(SERVE)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    found = [int(line) for line in done.stdout.split()]
    if precision == "int8":  # other weights, so other answers at times: those of the runtime
        engine, pixels = OnnxEngine.load(out), np.load(images)
        answers = [int(engine.run({engine.inputs[0].name: one[None]})[0].argmax()) for one in pixels]
    assert found == answers


def test_a_fresh_environment_with_onnxruntime_and_numpy_alone_serves_the_network(a_run: Run, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "onnxruntime", "numpy"]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"no package registry can be reached: {installed.stderr.strip().splitlines()[-1]}")
    for name in ("torch", "halp_iee"):
        found = subprocess.run([python, "-c", f"import {name}"], capture_output=True, cwd=tmp_path, env={}, check=False)
        assert found.returncode != 0, f"{name} is there"
    images, answers = images_and_answers(a_run, tmp_path)
    command = [python, str(SERVE), str(a_run.root / "model.onnx"), str(images)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env={})
    assert [int(line) for line in done.stdout.split()] == answers


def test_options_that_do_not_go_together_are_refused_in_python_too() -> None:
    with pytest.raises(UsageError, match="int8"):
        Options("safetensors", "int8").check()
