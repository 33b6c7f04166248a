"""A run whose files were changed since it measured them is refused, whatever the change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from halp_iee.cli.main import run as halp_iee
from halp_iee.run.directory import sha256
from tests.export.conftest import NETWORK, Run, listing, make_run


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
    for name, command in (
        ("model.onnx", "bench"), ("model.onnx", "export"), ("model.safetensors", "export"),
        ("model.onnx", "report"), ("model.safetensors", "report"),
    ):  # fmt: skip
        file = a_run.root / name
        honest = file.read_bytes()
        file.write_bytes(honest[:-3] + bytes([honest[-3] ^ 1]) + honest[-2:])  # the last weight's least bits
        before = listing(a_run.root)
        assert halp_iee([command, str(a_run.root)]) == 1
        assert "not the one that the run measured" in capsys.readouterr().err
        assert listing(a_run.root) == before
        file.write_bytes(honest)
