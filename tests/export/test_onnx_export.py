"""An exported file computes what the network computes, or it is not there."""

from __future__ import annotations

import contextlib
import io
import os
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from halp_iee.errors import ArtifactError, DeviceError, GraphError, ParityError
from halp_iee.export import parity
from halp_iee.export.onnx import export_onnx
from halp_iee.measure import runtime


class Residual(nn.Module):
    def __init__(self, width: int, groups: int = 1) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.bn(self.a(x)))


class Heads(nn.Module):
    """Returns a dict with a tuple in it, a whole-number tensor and something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> dict[str, object]:
        y = self.stem(x).relu().mean((2, 3))
        if scale is not None:
            y = y * scale
        return {"logits": self.head(y), "pair": (y, y.argmax(1)), "nothing": None}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, weights = self.attend(x, x, x)
        return self.norm(y + x), weights


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5, training=True)


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


def random_net(seed: int) -> nn.Module:
    """A convolutional classifier of random widths with statistics that a trained network might have."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    width = 4 * rng.randint(1, 5)
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 3, stride=rng.choice((1, 2)), padding=1),
        nn.BatchNorm2d(width),
    ]
    for _ in range(rng.randint(1, 3)):
        layers.append(Residual(width, groups=rng.choice((1, 2, width))))
        if rng.random() < 0.5:
            layers.append(rng.choice((nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Hardswish(), nn.SiLU())))
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 2.0)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.2, 2.0)
    return net


IMAGES = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("seed", range(5))
def test_a_random_network_answers_alike_in_torch_and_in_the_runtime(tmp_path, seed):
    net = random_net(seed)
    done = export_onnx(net, IMAGES, tmp_path / "net.onnx")
    session = runtime.session(done.path)
    fresh = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        want = net.eval()(fresh).numpy()
    have = session.run(None, {done.inputs[0][0]: fresh.numpy()})[0]
    assert np.abs(want - have).max() <= 1e-4 * np.abs(want).max()
    assert done.max_error <= done.tolerance
    assert done.bytes == done.path.stat().st_size


def test_every_tensor_of_a_dict_or_tuple_is_an_output_named_after_its_place(tmp_path):
    done = export_onnx(Heads(), IMAGES, tmp_path / "a.onnx")
    assert done.outputs == ("logits", "pair_0", "pair_1")
    done = export_onnx(Attention(), torch.randn(1, 6, 16), tmp_path / "b.onnx")
    assert len(done.outputs) == 2


def test_keyword_inputs_arrive_in_the_order_of_forward_however_they_are_given(tmp_path):
    done = export_onnx(Heads(), {"scale": torch.rand(1, 8), "x": IMAGES}, tmp_path / "a.onnx")
    assert [name for name, _ in done.inputs] == ["x", "scale"]


def test_a_dynamic_batch_takes_any_batch(tmp_path):
    net = random_net(1)
    done = export_onnx(net, IMAGES, tmp_path / "a.onnx", dynamic_batch=True)
    session = runtime.session(done.path)
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 16, 16)
        with torch.no_grad():
            want = net.eval()(x).numpy()
        np.testing.assert_allclose(session.run(None, {done.inputs[0][0]: x.numpy()})[0], want, atol=1e-4, rtol=1e-3)


def test_a_dynamic_batch_is_open_in_every_input_given_by_name_or_place(tmp_path):
    for number, given in enumerate(((IMAGES, torch.rand(1, 8)), {"x": IMAGES, "scale": torch.rand(1, 8)})):
        done = export_onnx(Heads(), given, tmp_path / f"{number}.onnx", dynamic_batch=True)
        assert all(isinstance(shape[0], str) for _, shape in done.inputs)


def test_the_network_is_left_as_it_was(tmp_path):
    net = random_net(2).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    export_onnx(net, IMAGES, tmp_path / "a.onnx")
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_nothing_is_printed_and_no_local_path_gets_into_the_file(tmp_path, capfd, recwarn):
    done = export_onnx(random_net(3), IMAGES, tmp_path / "a.onnx", metadata={"latency": "1.2 ms measured"})
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
    assert len(recwarn) == 0
    raw = done.path.read_bytes()
    assert os.path.dirname(torch.__file__).encode() not in raw
    assert b"stack_trace" not in raw
    model = onnx.load(done.path)
    assert {prop.key: prop.value for prop in model.metadata_props} == {"latency": "1.2 ms measured"}


def test_batch_normalisation_is_folded_away(tmp_path):
    done = export_onnx(random_net(4), IMAGES, tmp_path / "a.onnx")
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(done.path).graph.node}


@pytest.mark.parametrize("existing", [None, b"the old file"])
def test_a_wrong_export_is_refused_and_the_file_stays_as_it_was(tmp_path, monkeypatch, existing):
    from halp_iee.export import onnx as module

    honest = module._to_onnx

    def broken(model, *args):
        with torch.no_grad():
            next(model.parameters()).mul_(1.01)
        payload = honest(model, *args)
        with torch.no_grad():
            next(model.parameters()).div_(1.01)
        return payload

    monkeypatch.setattr(module, "_to_onnx", broken)
    path = tmp_path / "a.onnx"
    if existing is not None:
        path.write_bytes(existing)
    with pytest.raises(ParityError, match="differs by"):
        export_onnx(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), IMAGES, path)
    assert [p.name for p in tmp_path.iterdir()] == ([] if existing is None else ["a.onnx"])
    assert existing is None or path.read_bytes() == existing


def test_a_network_that_is_random_in_evaluation_mode_is_refused(tmp_path):
    with pytest.raises(ParityError):
        export_onnx(Noisy(), IMAGES, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_control_flow_on_values_is_named_as_the_reason(tmp_path):
    with pytest.raises(GraphError, match="Cannot export"):
        export_onnx(Branching(), IMAGES, tmp_path / "a.onnx")


def test_inputs_that_do_not_fit_are_told_from_operations_that_cannot_be_exported(tmp_path):
    with pytest.raises(GraphError, match="fails on the inputs given"):
        export_onnx(Heads(), torch.randn(1, 4, 16, 16), tmp_path / "a.onnx")
    with pytest.raises(GraphError, match="no tensor"):
        export_onnx(Heads(), "image.png", tmp_path / "a.onnx")


def test_a_network_that_gives_nan_is_refused(tmp_path):
    net = nn.Conv2d(3, 4, 3)
    nn.init.constant_(net.bias, float("nan"))
    with pytest.raises(GraphError, match="NaN"):
        export_onnx(net, IMAGES, tmp_path / "a.onnx")


def test_a_target_that_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch):
    from halp_iee.export import onnx as module

    monkeypatch.setattr(module, "_to_onnx", lambda *args: pytest.fail("worked in vain"))
    for path in (tmp_path / "missing" / "a.onnx", tmp_path, "/proc/a.onnx"):
        with pytest.raises(ArtifactError, match="Cannot write"):
            export_onnx(Heads(), IMAGES, path)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ArtifactError, match="no space left"):
        export_onnx(nn.Conv2d(3, 2, 1), IMAGES, path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_real_inputs_are_part_of_the_check(tmp_path):
    done = export_onnx(nn.Conv2d(3, 2, 1), IMAGES, tmp_path / "a.onnx", check_inputs=[IMAGES * 3, (IMAGES,)])
    assert done.checks == 5


@pytest.mark.parametrize(
    ("wheels", "remedy"),
    [
        ((), r"pip install 'halp-iee\[cpu\]'"),
        (("onnxruntime", "onnxruntime-gpu"), "pip uninstall -y onnxruntime"),
    ],
)
def test_no_runtime_or_two_are_said_in_one_line_with_the_remedy(tmp_path, monkeypatch, wheels, remedy):
    monkeypatch.setattr(runtime, "installed_wheels", lambda: wheels)

    def gone(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(runtime.importlib, "import_module", gone)
    with pytest.raises(DeviceError, match=remedy) as caught:
        export_onnx(Heads(), IMAGES, tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_relative_error_tells_kinds_of_disagreement_apart():
    x = np.array([1.0, -4.0], np.float32)
    assert parity.relative_error(x, x) == 0
    assert parity.relative_error(x, x + np.float32(0.4)) == pytest.approx(0.1, rel=1e-5)
    assert parity.relative_error(np.zeros(2), np.full(2, 1e-9)) == pytest.approx(1e-9)
    assert parity.relative_error(x, np.array([1.0, np.nan])) == np.inf
    assert parity.relative_error(np.array([1.0, -np.inf]), np.array([1.0, -np.inf])) == 0
    assert parity.relative_error(np.array([1.0, np.inf]), np.array([1.0, -np.inf])) == np.inf
    assert parity.relative_error(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 0.25


def test_the_exporter_is_silent_even_when_it_fails(tmp_path):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(GraphError):
        export_onnx(Branching(), IMAGES, tmp_path / "a.onnx")
    assert out.getvalue() == err.getvalue() == ""


def test_a_tensor_that_training_left_in_an_attribute_does_not_prevent_the_export(tmp_path: Path) -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            if self.training:
                self.seen = [y.mean()]
            return y

    model, x = Remembers().train(), torch.randn(1, 3, 8, 8)
    model(x)
    assert not model.seen[0].is_leaf
    assert export_onnx(model, x, tmp_path / "out.onnx").path.is_file()
    assert not model.seen[0].is_leaf
