"""The bench: any network, any runtime, paired; what cannot run is named and the rest goes on."""

from __future__ import annotations

import csv
import json
import sys
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from halp_iee.cli.main import run
from halp_iee.errors import ArtifactError, DeviceError, UsageError
from halp_iee.export.onnx import export_onnx
from halp_iee.measure import bench as benching
from halp_iee.measure.bench import BLOCKS, COLUMNS, Plan, bench
from halp_iee.measure.energy import measure_energy
from halp_iee.measure.runtime import OnnxEngine
from halp_iee.measure.subjects import Subject, subject

QUICK = ["--seconds", "0.1"]
RUNTIMES = ["onnxruntime", "torch"]
try:
    import openvino  # noqa: F401

    RUNTIMES.append("openvino")
except ImportError:
    pass


def network(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    ).eval()  # fmt: skip


def built(label: str, width: int) -> Subject:
    return Subject(label, build=lambda: (network(width), torch.randn(1, 3, 32, 32)))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    export_onnx(network(4), torch.randn(1, 3, 32, 32), folder / "tiny.onnx")
    export_onnx(network(64), torch.randn(1, 3, 32, 32), folder / "big.onnx")
    export_onnx(network(8), torch.randn(1, 3, 32, 32), folder / "open.onnx", dynamic_batch=True)
    foreign(folder / "foreign.onnx")
    return folder


def foreign(path: Path) -> None:
    """Two inputs, one of whole numbers with an axis of any length, one of truth values: a token classifier."""
    table = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["found"]),
        helper.make_node("Cast", ["mask"], ["weight"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["weight", "last"], ["column"]),
        helper.make_node("Mul", ["found", "column"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "foreign",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"]),
            helper.make_tensor_value_info("mask", TensorProto.BOOL, ["batch", "tokens"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "tokens", 8])],
        [
            helper.make_tensor("table", TensorProto.FLOAT, table.shape, table.ravel()),
            helper.make_tensor("last", TensorProto.INT64, [1], [-1]),
        ],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))


def test_every_runtime_batch_and_thread_count_gets_a_row_and_the_smaller_network_is_found_faster() -> None:
    plan = Plan(runtimes=RUNTIMES, batches=(1, 4), threads=(1,), seconds=0.25)
    found = bench([built("tiny", 4), built("big", 64)], plan, against=built("big", 64))
    assert len(found.rows) == 2 * 2 * len(RUNTIMES)
    assert not found.skipped
    for row in found.rows:
        assert 0 < row.median_ms <= row.p90_ms <= row.p99_ms
        assert row.fps == pytest.approx(1000 * row.batch / row.median_ms)
        assert row.samples >= 3 * BLOCKS
        if row.artifact == "tiny":
            assert row.verdict == "faster"
            assert row.ratio_low <= row.ratio <= row.ratio_high < 1
        else:
            assert row.ratio is None


def test_a_network_is_not_compared_with_itself_and_equal_ones_get_the_same_inputs(monkeypatch) -> None:
    seen = []
    honest = benching.random_feeds
    monkeypatch.setattr(benching, "random_feeds", lambda *a, **k: seen.append(honest(*a, **k)) or seen[-1])
    bench([built("a", 4), built("b", 4)], Plan(seconds=0.05))
    one, two = ({name: value.tobytes() for name, value in feeds.items()} for feeds in seen)
    assert list(one.values()) == list(two.values())


@pytest.mark.parametrize(("scale", "verdict"), [(0.8, "faster"), (1.0, "same"), (1.3, "slower")])
def test_the_verdict_follows_from_paired_samples_under_a_strong_common_drift(monkeypatch, scale, verdict) -> None:
    rng = np.random.default_rng(0)

    def drifting(calls, **_):
        level = np.exp(rng.normal(0, 0.3))
        return {label: (scale if label == "a" else 1.0) * level * rng.lognormal(0, 0.003, 50) for label in calls}

    monkeypatch.setattr(benching, "sample_interleaved", drifting)
    found = bench([built("a", 4)], Plan(seconds=0.1), against=built("b", 4))
    row = next(row for row in found.rows if row.artifact == "a")
    assert row.verdict == verdict
    assert row.unstable  # the level itself drifts, and that is said


def test_each_block_is_a_session_of_its_own(files: Path, monkeypatch) -> None:
    """What a session settles for as long as it lives must be seen in the interval: so each is opened anew."""
    opened, seen = [], []
    honest_load, honest = OnnxEngine.load, benching.sample_interleaved
    monkeypatch.setattr(
        OnnxEngine, "load", lambda file, **options: opened.append(Path(file).name) or honest_load(file, **options)
    )
    monkeypatch.setattr(
        benching, "sample_interleaved", lambda calls, **given: seen.append(dict(calls)) or honest(calls, **given)
    )
    monkeypatch.setattr(benching, "_RETRIES", 0)
    bench([subject(str(files / "tiny.onnx"))], Plan(seconds=0.05), against=subject(str(files / "open.onnx")))
    assert len(seen) == BLOCKS
    assert len({id(call) for calls in seen for call in calls.values()}) == 2 * BLOCKS
    assert opened.count("tiny.onnx") == opened.count("open.onnx") == BLOCKS + 1

    opened.clear()
    monkeypatch.setattr(benching, "_QUICK_S", 0.0)  # what takes long to open is opened once, and once to see how long
    bench([subject(str(files / "tiny.onnx"))], Plan(seconds=0.05))
    assert len(opened) == 2


def test_what_a_runtime_cannot_run_is_left_out_by_name_and_the_rest_is_measured(files: Path) -> None:
    plan = Plan(runtimes=("onnxruntime", "torch"), batches=(1, 8), seconds=0.05)
    found = bench([subject(str(files / "tiny.onnx")), subject(str(files / "open.onnx"))], plan)
    assert {(Path(r.artifact).name, r.batch) for r in found.rows} == {
        ("tiny.onnx", 1),
        ("open.onnx", 1),
        ("open.onnx", 8),
    }
    why = {(Path(s.artifact).name, s.runtime, s.batch): s.why for s in found.skipped}
    assert "dynamic batch" in why["tiny.onnx", "onnxruntime", 8]
    assert "torch" in " ".join(map(str, why))
    with pytest.raises(UsageError, match="dynamic batch"):
        bench([subject(str(files / "tiny.onnx"))], Plan(batches=(8,), seconds=0.05))


def test_an_onnx_file_of_any_origin_is_measured_once_its_open_axes_are_given(files: Path, capsys, tmp_path) -> None:
    name = str(files / "foreign.onnx")
    assert run(["bench", name, *QUICK]) == 2
    assert "--shape ids:" in capsys.readouterr().err
    shapes = ["--shape", "ids:2x16", "--shape", "mask:2x16"]
    assert run(["bench", name, *QUICK, *shapes, "--json"]) in (0, 3)
    (row,) = json.loads(capsys.readouterr().out)["results"]
    assert row["batch"] == 2
    assert run(["bench", name, *QUICK, "--shape", "ids:2x16", "--shape", "mask:2x9"]) == 2
    assert "fails in ONNX Runtime" in capsys.readouterr().err
    assert run(["bench", name, *QUICK, *shapes, "--shape", "other:1x3"]) == 2
    assert "no network here has an input 'other'" in capsys.readouterr().err
    np.savez(tmp_path / "in.npz", ids=np.arange(10).reshape(1, 10), mask=np.ones((1, 10), bool))
    assert run(["bench", name, *QUICK, "--inputs", str(tmp_path / "in.npz")]) in (0, 3)
    np.savez(tmp_path / "in.npz", nonsense=np.ones(3))
    assert run(["bench", name, *QUICK, "--inputs", str(tmp_path / "in.npz")]) == 2
    assert "nonsense" in capsys.readouterr().err
    for content in (b"", b"nonsense", b"PK\x03\x04nonsense"):
        (tmp_path / "in.npz").write_bytes(content)
        assert run(["bench", name, *QUICK, "--inputs", str(tmp_path / "in.npz")]) == 1
        assert "cannot read the inputs" in capsys.readouterr().err


def test_arrays_with_objects_in_them_are_refused_unread(files: Path, capsys, tmp_path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    np.savez(tmp_path / "in.npz", ids=np.array([Bomb()], dtype=object))
    assert run(["bench", str(files / "foreign.onnx"), "--inputs", str(tmp_path / "in.npz")]) == 1
    assert "cannot read the inputs" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


def test_text_json_and_csv_say_the_same(files: Path, capsys, tmp_path) -> None:
    common = ["bench", str(files / "tiny.onnx"), "--against", str(files / "big.onnx"), *QUICK]
    assert run([*common, "--json", "--csv", str(tmp_path / "rows.csv")]) in (0, 3)
    document = json.loads(capsys.readouterr().out)
    with open(tmp_path / "rows.csv") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["artifact"] for row in rows] == [row["artifact"] for row in document["results"]]
    for row, told in zip(rows, document["results"], strict=True):
        assert {k: "" if v is None else str(v) for k, v in told.items()} == row
    assert document["environment"]["processor"]
    assert run([*common, "--csv", "-"]) in (0, 3)
    assert capsys.readouterr().out.startswith(",".join(COLUMNS))
    assert run(common) in (0, 3)
    assert "faster" in capsys.readouterr().out


def test_csv_where_it_cannot_be_written_ends_in_one_line(files: Path, capsys, tmp_path) -> None:
    got = run(["bench", str(files / "tiny.onnx"), *QUICK, "--csv", str(tmp_path / "none" / "x.csv")])
    assert got == 1
    assert "cannot write" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["resnet18", "--batch", "0"], 2, "whole numbers"),
        (["resnet18", "--batch", "1,x"], 2, "whole numbers"),
        (["resnet18", "--threads", "9999"], 2, "whole numbers"),
        (["resnet18", "--runtime", "tflite"], 2, "onnxruntime"),
        (["resnet18", "--device", "tpu"], 2, "cuda"),
        (["resnet18", "--device", "cuda:x"], 2, "cuda"),
        (["resnet18", "--shape", "1x3x2x2"], 2, "NAME:SHAPE"),
        (["resnet18", "--json", "--csv", "-"], 2, "stdout"),
        (["net.engine"], 1, "no such file"),
        (["nowhere.xml"], 1, "no such file"),
        (["nowhere/"], 1, "no such file"),
    ],
)
def test_mistakes_are_named(capsys, arguments, code, words) -> None:
    assert run(["bench", *arguments]) == code
    assert words in capsys.readouterr().err


def test_files_that_are_no_networks_and_engines_that_run_code_are_refused(tmp_path) -> None:
    for name in ("a.safetensors", "a.pth", "a.engine"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(UsageError, match="Cannot measure"):
            subject(str(tmp_path / name))
    with pytest.raises(ArtifactError, match="no such"):
        subject(str(tmp_path / "b.onnx"))


def test_a_runtime_that_is_missing_is_named_with_its_remedy(monkeypatch, capsys, files: Path) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert run(["bench", str(files / "tiny.onnx"), "--runtime", "openvino", *QUICK]) == 3
    assert "pip install 'halp-iee[openvino]'" in capsys.readouterr().err
    assert run(["bench", str(files / "tiny.onnx"), "--runtime", "all", "--json", *QUICK]) in (0, 3)
    told = json.loads(capsys.readouterr().out)
    assert {row["runtime"].split()[0] for row in told["results"]} == {"ONNX"}


def test_a_gpu_that_is_not_there_ends_in_3(files: Path, capsys) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for runtime in ("onnxruntime", "torch"):
        assert run(["bench", "resnet20", "--device", "cuda", "--runtime", runtime, *QUICK]) == 3
    assert "CUDA" in capsys.readouterr().err


class FakeNvml(types.ModuleType):
    """A GPU that draws 250 W whenever it is asked."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, counts: bool = True) -> None:
        super().__init__("pynvml")
        self.counts, self.seconds = counts, 0.0

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_: None

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object) -> int:  # noqa: N802
        if not self.counts:
            raise self.NVMLError("Not Supported")
        return 7_000_000 + round(250_000 * self.seconds)


@pytest.mark.parametrize("call_s", [0.01, 0.05])
def test_energy_is_the_counters_difference_by_the_calls(monkeypatch, call_s) -> None:
    from halp_profiler import nvml

    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(nvml, "attached", lambda: [nvml.Gpu(0, "fake", "GPU-1", ())])

    def call() -> None:
        fake.seconds += call_s

    found = measure_energy(call, seconds=1.0, clock=lambda: fake.seconds)
    assert found is not None
    assert found.mj_per_call == pytest.approx(250_000 * call_s, rel=0.02)
    assert found.watts == pytest.approx(250, rel=0.02)
    assert measure_energy(call, gpu=1) is None


def test_no_energy_is_claimed_where_the_counter_or_the_library_is_missing(monkeypatch) -> None:
    from halp_profiler import nvml

    monkeypatch.setattr(nvml, "attached", lambda: [nvml.Gpu(0, "fake", "GPU-1", ())])
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(counts=False))
    assert measure_energy(lambda: None, seconds=0.01) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert measure_energy(lambda: None, seconds=0.01) is None
    still = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", still)  # a counter that does not move
    assert measure_energy(lambda: None, seconds=0.01) is None


def test_energy_reaches_the_row_as_millijoules_an_image_and_only_on_a_gpu(monkeypatch) -> None:
    from halp_iee.measure.energy import Energy

    monkeypatch.setattr(benching, "measure_energy", lambda *_, **__: Energy(80.0, 200.0, 10))
    (row,) = bench([built("a", 4)], Plan(batches=(4,), seconds=0.05)).rows
    assert row.energy_mj is None
    monkeypatch.setattr(Subject, "engine", lambda self, *a, **k: honest(self, *a, **{**k, "device": "cpu"}))
    (row,) = bench([built("a", 4)], Plan(batches=(4,), seconds=0.05, device="cuda:0")).rows
    assert row.energy_mj == 20.0


honest = Subject.engine


def test_inputs_and_outputs_that_stay_on_the_device_give_the_same_answers(files: Path) -> None:
    engine = OnnxEngine.load(files / "open.onnx")
    feeds = benching.random_feeds(engine.inputs, batch=3)
    binding = engine._bound(feeds, "cpu", 0)()  # the path of a GPU, on the device that is always there
    (got,) = binding.copy_outputs_to_cpu()
    np.testing.assert_array_equal(got, engine.run(feeds)[0])


def test_device_errors_of_every_runtime_are_device_errors() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError):
        bench([built("a", 4)], Plan(runtimes=("torch",), device="cuda:0", seconds=0.05))
