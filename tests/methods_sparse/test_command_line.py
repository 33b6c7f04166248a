"""`train` to a sparsity, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halp_iee.cli.main import run

FAST = ["--data", "digits", "--epochs", "1", "--batch-size", "128"]


@pytest.fixture
def net(tmp_path: Path) -> str:
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n"
        "def net(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 8, 3, 4), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))\n"
    )
    return f"{file}:net"


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "rigl", "--sparsity", "0.8"],
        ["--method", "iee", "--pattern", "2:4", "--exclude", "0"],
        ["--method", "mest", "--sparsity", "0.8", "--variant", "em", "--update-every", "3"],
        ["--method", "chase", "--sparsity", "0.7", "--channel-sparsity", "0.25", "--update-every", "3"],
    ],
    ids=lambda options: options[1],
)
def test_trains_to_a_sparsity(options: list[str], net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["train", "--model", net, *FAST, *options, "--out", str(tmp_path / "run"), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    result = json.loads(captured.out)
    assert result["method"] == options[1]
    assert 0 < result["sparsity"] < 1
    assert Path(result["artifact"]).exists()
    for command in ("watch", "report"):
        assert run([command, str(tmp_path / "run")]) == 0
        assert f"{result['sparsity']:.2%}" in capsys.readouterr().out
    assert run(["report", str(tmp_path / "run"), str(tmp_path / "run"), "--out", str(tmp_path / "both.html")]) == 0
    capsys.readouterr()
    for command in ("export", "bench"):
        assert run([command, str(tmp_path / "run")]) == 1
        assert "trained to a sparsity" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "rigl"], "needs a sparsity"),
        (["--method", "rigl", "--sparsity", "1"], "[0, 1)"),
        (["--method", "halp", "--sparsity", "0.5"], "--sparsity cannot be used with --method halp"),
        (["--method", "rigl", "--pattern", "2:4", "--sparsity", "0.9"], "0.5 and no other"),
        (["--method", "set", "--pattern", "3:5"], "no multiple of 5"),
        (["--method", "set", "--distribution", "nowhere.json"], "nowhere.json cannot be used: the file does not exist"),
        (["--method", "set", "--sparsity", "0.5", "--unused", "zero"], "no setting 'unused'"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    options: list[str], message: str, net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    code = run(["train", "--model", net, *FAST, *options, "--out", str(directory)])
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not directory.exists()
