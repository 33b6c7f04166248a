"""What is deployed computes what the run's network computes, accuracy included; or there is no file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from halp_iee.cli.main import run as halp_iee
from halp_iee.errors import ArtifactError, GraphError, ParityError, UsageError
from halp_iee.export import deploy as deploying
from halp_iee.export import parity, torch_export
from halp_iee.export import quantise as quantising
from halp_iee.export.call import as_call
from halp_iee.export.deploy import deploy, exports_of
from halp_iee.export.onnx import export_onnx
from halp_iee.export.quantise import agreement, quantise
from halp_iee.export.source import MAX_DROP, SUFFIX, Options, source_of
from halp_iee.measure.accuracy import Accuracy
from halp_iee.measure.runtime import OnnxEngine
from halp_iee.run.directory import RunDirectory
from halp_iee.run.reload import slim_network
from halp_iee.slim.artifact import save
from halp_iee.train.data import load
from tests.export.conftest import Run, listing, make_run

try:
    import openvino  # noqa: F401

    HAS_OPENVINO = True
except ImportError:
    HAS_OPENVINO = False
needs_openvino = pytest.mark.skipif(not HAS_OPENVINO, reason="OpenVINO is an extra that is not installed here")


@pytest.mark.parametrize(
    ("asked", "macs", "precision", "images"),
    [
        (7, 1e6, "fp32", 7), (900, 1e6, "fp32", 500), (None, 1e6, "fp32", 500), (None, 1e9, "fp32", 200),
        (None, 9e9, "fp32", 100), (None, 1e9, "int8", 400), (None, 9e9, "int8", 250), (None, 9e9, "fp16", 250),
    ],
)  # fmt: skip
def test_a_large_network_is_compared_on_images_spread_over_the_test_set(a_run: Run, asked, macs, precision, images):
    directory = RunDirectory(a_run.root)
    options = Options(precision=precision, test_images=asked)
    source = source_of(directory, {**a_run.result, "macs": macs}, options)
    found = torch.cat([batch for batch, _ in source.test_batches()])
    whole = torch.cat([batch for batch, _ in source.data.test.batches(250)])
    assert len(found) == images
    assert torch.equal(found[[0, -1]], whole[[0, -1]])


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
    assert a_run.result["top1"] - done.top1 <= MAX_DROP[precision] + 1e-9
    if precision != "int8":  # whose rounding may as well turn some images of a hardly trained network the right way
        assert done.top1 - a_run.result["top1"] <= MAX_DROP[precision] + 1e-9
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


def test_percentiles_are_found_on_as_many_images_as_fit_the_memory(the_run: Run, tmp_path, monkeypatch) -> None:
    images = next(iter(load("digits").train.batches(48)))[0].numpy()
    single, seen = the_run.root / "model.onnx", []
    honest = quantising._quantise

    def counted(file: Path, path: Path, given: np.ndarray, method: str, engine: OnnxEngine) -> None:
        seen.append((method, len(given)))
        honest(file, path, given, method, engine)

    monkeypatch.setattr(quantising, "_quantise", counted)
    monkeypatch.setattr(quantising, "agreement", lambda *_: 0.9)  # neither method satisfies
    quantise(single, tmp_path / "a.onnx", images, metadata={})
    monkeypatch.setattr(quantising, "HELD_BYTES", 1)
    quantise(single, tmp_path / "b.onnx", images, metadata={})
    assert seen == [("minmax", 48), ("percentile", 48), ("minmax", 48), ("percentile", 8)]


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


def test_an_export_that_is_told_to_end_leaves_nothing(tmp_path: Path) -> None:
    script = f"""
        import os, signal
        from pathlib import Path
        from halp_iee.export import deploy
        with deploy._beside(Path({str(tmp_path / "net.onnx")!r})) as folder:
            (folder / "net.onnx").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGTERM)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_goes_with_the_next_one(tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    script = f"""
        import os, signal
        from pathlib import Path
        from halp_iee.export import deploy
        with deploy._beside(Path({str(out)!r})) as folder:
            (folder / "net.onnx").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    of_nobody = tmp_path / ".net.onnx.abc.partial"
    of_nobody.mkdir()
    with deploying._beside(tmp_path / "other.onnx"):
        assert left.exists()
    # Two that run at once leave one another alone.
    with deploying._beside(out) as first, deploying._beside(out) as second:
        assert not left.exists()
        assert first.exists()
        assert second.exists()
    assert list(tmp_path.iterdir()) == [of_nobody]


class Deaf(torch.nn.Module):
    """Its first layer is dead or not; what it returns is of another size than 1 either way."""

    def __init__(self, dead: bool, scale: float) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(3, 4, 1), torch.nn.Linear(4, 5)
        torch.nn.init.constant_(self.first.bias, -1000.0 if dead else 1000.0)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.last(torch.relu(self.first(x)).mean((2, 3)))


@pytest.mark.parametrize("scale", [1e-11, 1.0, 1e9])
@pytest.mark.parametrize("dead", [True, False])
def test_a_network_that_does_not_hear_its_input_is_written_and_called_that(tmp_path, dead, scale) -> None:
    """Any weights before the dead layer would pass the comparison, so whoever reads of it must know."""
    done = export_onnx(Deaf(dead, scale), torch.randn(1, 3, 8, 8), tmp_path / "net.onnx")
    assert done.path.is_file()
    assert done.responds is not dead


def test_an_export_of_a_dead_network_says_so(a_run: Run, capsys) -> None:
    model, _ = slim_network(RunDirectory(a_run.root), a_run.result)
    with torch.no_grad():
        model.head.weight.zero_()
    save(model, a_run.root / "model.safetensors", provenance={"model": a_run.result["model"]})
    export_onnx(model, torch.randn(1, 1, 32, 32), a_run.root / "model.onnx")
    blind = a_run.result | {"data": None, "top1": None, "top1_dense": None}
    (a_run.root / "result.json").write_text(json.dumps(blind))
    assert halp_iee(["export", str(a_run.root)]) == 0
    assert "same output for every input" in capsys.readouterr().out


def test_what_half_precision_cannot_hold_is_named(a_run: Run, tmp_path: Path) -> None:
    class Zeros:
        runtime, outputs = "a runtime", (SimpleNamespace(name="y"),)
        inputs = (SimpleNamespace(name="x"),)

        def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [np.zeros((1, 5), np.float32)]

    net = Deaf(dead=False, scale=1e-12).eval()
    with pytest.raises(ParityError, match=r"0 throughout.* precision"):
        parity.prove(net, Zeros(), [as_call(net, torch.ones(1, 3, 8, 8))], 2e-2)  # type: ignore[arg-type]


def test_options_that_do_not_go_together_are_refused_in_python_too() -> None:
    with pytest.raises(UsageError, match="int8"):
        Options("safetensors", "int8").check()
