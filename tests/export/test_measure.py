"""Measured in the runtime: latency, comparison, accuracy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from halp_iee.errors import ArtifactError, DataError, DeviceError, UnstableError, UsageError
from halp_iee.export.onnx import export_onnx
from halp_iee.measure import latency, runtime
from halp_iee.measure.accuracy import top1_onnx
from halp_iee.measure.compare import compare_calls, compare_onnx, judge
from halp_iee.measure.engine import bind, fixed_batch, random_feeds
from halp_iee.measure.latency import fps, measure_onnx


def conv_net(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    made = {}
    for label, width in (("tiny", 4), ("big", 64)):
        made[label] = export_onnx(conv_net(width), torch.randn(1, 3, 32, 32), folder / f"{label}.onnx").path
    made["open"] = export_onnx(conv_net(8), torch.randn(1, 3, 32, 32), folder / "open.onnx", dynamic_batch=True).path
    return made


def test_a_big_network_takes_longer_than_a_tiny_one(files):
    timings = measure_onnx({"tiny": files["tiny"], "big": files["big"]}, seconds=0.2)
    assert list(timings) == ["tiny", "big"]
    assert timings["big"].median_ms > 2 * timings["tiny"].median_ms > 0
    assert fps(timings["tiny"]) > fps(timings["big"])
    assert fps(4.0, batch=8) == 2000


def test_the_comparison_finds_the_faster_one_and_no_difference_of_a_file_with_itself(files):
    found = compare_onnx(files["tiny"], files["big"], seconds=0.4, blocks=8)
    assert found.verdict == "faster"
    assert found.low <= found.ratio <= found.high < 0.5
    assert compare_onnx(files["big"], files["tiny"], seconds=0.4, blocks=8).verdict == "slower"
    # A generous band: other work on the machine must not fail the test.
    assert compare_onnx(files["big"], files["big"], seconds=0.8, blocks=8, indifference=0.3).verdict == "same"


def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        drift = np.exp(np.cumsum(rng.normal(0, 0.1, 20)))  # strong drift, the same for both
        pairs = np.stack([0.9 * drift * rng.lognormal(0, 0.02, 20), drift * rng.lognormal(0, 0.02, 20)], axis=1)
        found = judge(pairs)
        held += found.low <= 0.9 <= found.high
    assert 0.88 <= held / 200 <= 1.0


def test_equal_things_are_seldom_called_different():
    rng = np.random.default_rng(1)
    wrong = sum(judge(rng.lognormal(0, 0.05, (20, 2))).verdict != "same" for _ in range(200))
    assert wrong <= 0.08 * 200


def test_too_few_blocks_or_a_strange_level_are_refused():
    with pytest.raises(UsageError, match="too few"):
        compare_calls(lambda: None, lambda: None, blocks=2)
    with pytest.raises(UsageError, match="confidence"):
        compare_calls(lambda: None, lambda: None, confidence=95)


def test_the_batch_reaches_the_runtime_and_a_fixed_one_is_not_passed_over(files):
    timings = measure_onnx({"open": files["open"]}, batch=16, seconds=0.1)
    single = measure_onnx({"open": files["open"]}, seconds=0.1)
    assert timings["open"].median_ms > 2 * single["open"].median_ms
    with pytest.raises(UsageError, match="dynamic batch"):
        measure_onnx({"tiny": files["tiny"]}, batch=16)


def test_an_unsteady_measurement_is_repeated_then_flagged_and_refused_only_if_asked(files, monkeypatch):
    rounds = []
    honest = latency.time_interleaved

    def shaky(calls, **options):
        rounds.append(tuple(calls))
        return honest(calls, min_seconds=0.01, min_rounds=3, unstable_over=-1.0)

    monkeypatch.setattr(latency, "time_interleaved", shaky)
    said = []
    timings = measure_onnx({"tiny": files["tiny"]}, retries=2, progress=said.append)
    assert timings["tiny"].unstable
    assert len(rounds) == 3
    assert len(said) == 2
    with pytest.raises(UnstableError, match="tiny"):
        measure_onnx({"tiny": files["tiny"]}, retries=0, strict=True)


def test_files_that_are_missing_or_broken_or_no_model_end_in_a_clear_error(tmp_path, files):
    with pytest.raises(ArtifactError, match="no such file"):
        measure_onnx({"a": tmp_path / "none.onnx"})
    broken = {"empty": b"", "text": b"hello", "half": files["big"].read_bytes()[:2000]}
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=name) as caught:
            measure_onnx({"a": tmp_path / name})
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="no file"):
        measure_onnx({})


def test_a_device_that_is_not_there_is_not_replaced_by_another(files):
    with pytest.raises(DeviceError, match="TensorrtExecutionProvider"):
        measure_onnx({"a": files["tiny"]}, provider="TensorrtExecutionProvider")


def test_random_inputs_repeat_with_their_seed_and_given_ones_are_checked(files):
    engine = runtime.OnnxEngine.load(files["open"])
    one, two = (random_feeds(engine.inputs, batch=3, seed=5) for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert next(iter(one.values())).shape == (3, 3, 32, 32)
    assert fixed_batch(engine) is None
    assert fixed_batch(runtime.OnnxEngine.load(files["tiny"])) == 1
    for wrong in (
        np.zeros((1, 4, 32, 32)),
        [np.zeros((1, 3, 32, 32))] * 2,
        {"nope": np.zeros((1, 3, 32, 32))},
    ):
        with pytest.raises(UsageError, match="do not fit"):
            bind(engine.inputs, wrong)
    with pytest.raises(UsageError, match="threads"):
        runtime.session(files["open"], threads=0)


@pytest.mark.parametrize("label", ["tiny", "open"])
def test_accuracy_in_the_runtime_is_that_of_torch_for_fixed_and_open_batches(files, label):
    net = conv_net({"tiny": 4, "open": 8}[label]).eval()
    images = torch.randn(23, 3, 32, 32)
    with torch.no_grad():
        labels = net(images).argmax(1)
    labels[:5] = (labels[:5] + 1) % 10
    found = top1_onnx(files[label], [(images[:10], labels[:10]), (images[10:], labels[10:])])
    assert (found.correct, found.total) == (18, 23)
    assert found.top1 == 18 / 23


def test_accuracy_refuses_no_images_or_labels_that_do_not_fit(files):
    with pytest.raises(DataError, match="no image"):
        top1_onnx(files["tiny"], [])
    with pytest.raises(DataError, match="labels"):
        top1_onnx(files["tiny"], [(torch.randn(2, 3, 32, 32), torch.zeros(3))])
    with pytest.raises(UsageError, match="no output"):
        top1_onnx(files["tiny"], [], output="nope")
