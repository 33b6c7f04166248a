"""Every way to name a network builds it, or says in one line why not."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from halp_iee import models
from halp_iee.errors import ArtifactError, UsageError
from halp_iee.models.catalogue import OWN
from halp_iee.train import Recipe, fit
from halp_iee.train.weights import load_weights


@pytest.mark.parametrize("name", [*OWN, "resnet18", "mobilenet_v3_small", "squeezenet1_1", "googlenet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_takes_the_classes_and_channels_asked_for(name, channels):
    size = 32 if OWN.get(name, (None, (3, 224, 224)))[1][-1] == 32 else 64
    model = models.build(name, num_classes=7, in_channels=channels)
    models.check_fits(model, (channels, size, size), 7)
    assert model.training


@pytest.mark.parametrize("name", list(OWN))
def test_a_network_of_ours_by_default_takes_its_default_image(name):
    model = models.build(name)
    shape = models.default_input_shape(name)
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, *shape)).shape == (1, 1000 if shape[-1] == 224 else 10)


@pytest.mark.parametrize(
    ("name", "side"), [("resnet50", 224), ("inception_v3", 299), ("vit_b_16", 224), ("swin_v2_t", 256)]
)
def test_default_images_are_those_of_the_published_weights(name, side):
    assert models.default_input_shape(name) == (3, side, side)


def test_a_vision_transformer_is_built_for_the_size_of_the_images():
    model = models.build("vit_b_32", num_classes=4, image_size=64)
    models.check_fits(model, (3, 64, 64), 4)


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("resent50", "did you mean resnet50"),
        ("resnet_20", "did you mean.*resnet20"),
        ("", "unknown network ''"),
        ("no-such-thing-at-all", "try resnet20"),
        ("nowhere.py:f", "there is no file nowhere.py"),
    ],
)
def test_an_unknown_name_is_a_usage_error_with_near_names(spec, word):
    for function in (models.build,) if ".py" in spec else (models.build, models.default_input_shape):
        with pytest.raises(UsageError, match=word) as caught:
            function(spec)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_without_timm_the_remedy_is_a_pip_command():
    with pytest.raises(UsageError, match=r"pip install 'halp-iee\[timm\]'"):
        models.build("timm:resnet10t")


FILE = """
import torch
from torch import nn
from sibling import WIDTH
net = nn.Identity()
number = 3
def plain(): return nn.Linear(WIDTH, 2)
def asked(num_classes=10, *, in_channels=3): return nn.Linear(in_channels, num_classes)
def caught(**options): assert not options; return nn.Identity()
def fails(): raise RuntimeError("first\\nsecond")
def other(): return 3
def needs(something): return nn.Identity()
class Net(nn.Linear):
    def __init__(self, num_classes): super().__init__(WIDTH, num_classes)
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "sibling.py").write_text("WIDTH = 5\n")
    path = tmp_path / "nets.py"
    path.write_text(FILE)
    return path


def test_a_function_or_class_of_ones_own_is_called_with_the_options_that_it_knows(file):
    def built(name):
        return models.build(f"{file}:{name}", num_classes=4, in_channels=2, image_size=32)

    assert (built("plain").in_features, built("plain").out_features) == (5, 2)
    assert (built("asked").in_features, built("asked").out_features) == (2, 4)
    assert built("Net").out_features == 4
    assert isinstance(built("caught"), nn.Identity)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("missing", "defines no 'missing'"),
        ("net", "is a network, not a function"),
        ("number", "'number' is a int"),
        ("fails", r"RuntimeError: first \(line 10\)"),
        ("other", "returned a int"),
        ("needs", "missing 1 required positional argument"),
        ("", "names no function"),
    ],
)
def test_a_function_that_does_not_build_a_network_is_said_in_one_line(file, name, word):
    with pytest.raises(UsageError, match=word) as caught:
        models.build(f"{file}:{name}" if name else str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("def f(:\n", r"SyntaxError.*line 1"),
        ("import nowhere_at_all", "nowhere_at_all"),
        ("raise SystemExit", "SystemExit"),
    ],
)
def test_a_file_that_does_not_run_is_said_in_one_line(tmp_path, text, word):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(UsageError, match=word) as caught:
        models.build(f"{tmp_path}/bad.py:f")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "word"),
    [("alexnet", (3, 32, 32), 10, "does not take images"), ("resnet20", (1, 32, 32), 12, r"shape \(2, 10\)")],
)
def test_a_network_that_does_not_fit_the_data_is_found_out_beforehand(name, shape, classes, word):
    with pytest.raises(UsageError, match=word):
        models.check_fits(models.build(name, 10), shape, classes)


def test_looking_whether_a_network_fits_changes_nothing_in_it():
    model = models.build("resnet20")
    model.bn1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    models.check_fits(model, (1, 32, 32), 10)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert not model.bn1.training


# Weights from a file


def test_weights_are_loaded_from_a_state_dict_with_or_without_a_prefix(tiny_net, tmp_path):
    source, target = tiny_net(1), tiny_net(2)
    for prefix in ("", "module.", "_orig_mod."):
        save_file({prefix + name: value for name, value in source.state_dict().items()}, tmp_path / "w")
        load_weights(target, tmp_path / "w")
        assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items())


def test_weights_are_loaded_from_a_checkpoint_of_a_training(tiny_net, tiny_data, tmp_path):
    source, target = tiny_net(1), tiny_net(2)
    fit(source, tiny_data, Recipe(epochs=1), checkpoint_dir=tmp_path)
    load_weights(target, tmp_path / "checkpoint.safetensors")
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items())


def test_weights_of_another_network_are_refused_and_nothing_is_changed(tiny_net, tmp_path):
    model = tiny_net(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wider = {name: value.contiguous() for name, value in tiny_net(2, width=9).state_dict().items()}
    fewer = {name: value for name, value in tiny_net(2).state_dict().items() if name != "fc.bias"}
    more = {**tiny_net(2).state_dict(), "head.weight": torch.zeros(1)}
    for tensors, word in (
        (wider, r"is \(9,"),
        (fewer, "'fc.bias' is not in the file"),
        (more, "'head.weight' is not in the"),
    ):
        save_file(tensors, tmp_path / "w")
        with pytest.raises(ArtifactError, match=word):
            load_weights(model, tmp_path / "w")
    (tmp_path / "w").write_bytes(b"PK\x03\x04 a pickle, say")
    with pytest.raises(ArtifactError, match="no whole safetensors file"):
        load_weights(model, tmp_path / "w")
    with pytest.raises(ArtifactError, match="no such file"):
        load_weights(model, tmp_path / "nowhere")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
