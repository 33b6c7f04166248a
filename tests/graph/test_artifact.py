"""The file: whole or not at all, and no trust in what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from halp_iee.errors import ArtifactError
from halp_iee.graph import trace
from halp_iee.slim import load, read_recipe, save
from halp_iee.slim.build import disagreement, outputs
from tests.graph import networks
from tests.graph.networks import build
from tests.graph.selections import halves


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, inputs = build(networks.Residual)
    graph = trace(model, inputs)
    return save(graph.slim(halves(graph)), tmp_path / "small.safetensors", provenance={"latency": "measured"})


def rewritten(path: Path, change: Any) -> Path:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        recipe = json.loads(file.metadata()["halp_recipe"])
    metadata = {"halp_recipe": json.dumps(recipe)}
    metadata = change(tensors, recipe) or metadata
    save_file(tensors, path, metadata=metadata)
    return path


def test_the_recipe_says_what_was_kept(saved: Path) -> None:
    recipe = read_recipe(saved)
    assert recipe["keep"]["a.0"] == [0, 2, 4]
    assert recipe["groups"]["a.0"] == 6
    assert recipe["provenance"] == {"latency": "measured"}


def test_a_builder_will_do_and_a_given_network_is_not_changed(saved: Path) -> None:
    model, inputs = build(networks.Residual)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one, two = load(saved, model), load(saved, networks.Residual)
    assert disagreement(outputs(one, (inputs,), {}), outputs(two, (inputs,), {})) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert save(one, saved) == saved, "a loaded network can be saved again"


def test_a_network_slimmed_twice_loads_into_the_original(tmp_path: Path) -> None:
    model, inputs = build(networks.Grouped)
    graph = trace(model, inputs)
    again = trace(graph.slim(halves(graph)), inputs)
    small = again.slim(halves(again))
    path = save(small, tmp_path / "twice.safetensors")
    assert disagreement(outputs(small, (inputs,), {}), outputs(load(path, model), (inputs,), {})) == 0
    assert len(read_recipe(path)["earlier"]) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, r: {"other": "x"}, "without a recipe"),
        (lambda t, r: {"halp_recipe": "{"}, "not JSON"),
        (lambda t, r: {"halp_recipe": "[]"}, "another format"),
        (lambda t, r: {"halp_recipe": json.dumps({**r, "version": 99})}, "version 99"),
        (lambda t, r: {"halp_recipe": json.dumps({**r, "keep": 3})}, "what is kept"),
        (lambda t, r: t.pop("head.weight") is None or None, "no tensor head.weight"),
        (lambda t, r: t.update(extra=torch.zeros(1)), "no tensor extra"),
        (lambda t, r: t.update({"head.weight": torch.zeros(500, 500)}), "head.weight has shape"),
        (lambda t, r: t.update({"head.weight": torch.zeros(5)}), "head.weight has shape"),
        (lambda t, r: t.update({"head.bias": torch.zeros(5, dtype=torch.int64)}), "head.bias holds"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(saved: Path, change: Any, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        load(rewritten(saved, change), networks.Residual)


def test_broken_bytes_are_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for cut in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:cut])
        with pytest.raises(ArtifactError, match="broken"):
            load(saved, networks.Residual)
    saved.write_bytes(b"\xff" * 64)
    with pytest.raises(ArtifactError):
        load(saved, networks.Residual)


def test_a_missing_file_a_wrong_network_and_a_network_without_recipe_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        load(tmp_path / "none", networks.Residual)
    with pytest.raises(ArtifactError, match="no tensor"):
        load(saved, networks.Grouped)
    with pytest.raises(ArtifactError, match="returned a int"):
        load(saved, lambda: 3)  # type: ignore[arg-type, return-value]
    with pytest.raises(ArtifactError, match="which units"):
        save(networks.Residual(), tmp_path / "x")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(saved: Path) -> None:
    before = saved.read_bytes()
    small = load(saved, networks.Residual)
    with pytest.raises(ArtifactError, match="not JSON"):
        save(small, saved, provenance={"when": object()})
    with pytest.raises(ArtifactError, match="cannot be saved"):
        save(small, saved.parent / "absent" / "x.safetensors")
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
