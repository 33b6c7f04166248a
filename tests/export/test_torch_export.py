"""Programs of torch.export: written without a pickle, and read only where nothing in them can run."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from halp_iee.errors import ArtifactError
from halp_iee.export import torch_export
from halp_iee.export.deploy import deploy
from halp_iee.export.source import Options
from halp_iee.run.directory import RunDirectory
from halp_iee.run.reload import slim_network
from tests.export.conftest import Run


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


def test_a_disk_that_fills_up_is_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    """torch's own writer of archives ends the process there, so a process of its own is what tries it."""
    script = f"""
        import resource, sys
        from pathlib import Path
        import torch
        from halp_iee.export import torch_export
        from halp_iee.export.call import as_call
        model, x = torch.nn.Linear(200, 200), torch.zeros(1, 200)
        program = torch_export.program_of(model, as_call(model, x), dynamic_batch=False)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # the weights alone are 160,000 bytes
        try:
            torch_export.write_program(program, Path({str(tmp_path / "x.pt2")!r}), {{}})
        except OSError as error:
            print("said:", error.strerror)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "said: File too large" in done.stdout
