"""The proof of deployment: the network answers without this package and without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from halp_iee.export.deploy import deploy
from halp_iee.export.source import Options
from halp_iee.measure.runtime import OnnxEngine
from halp_iee.run.directory import RunDirectory
from halp_iee.run.reload import slim_network
from halp_iee.train.data import load
from tests.export.conftest import Run

SERVE = Path(__file__).parents[2] / "examples" / "serve_onnx.py"


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
