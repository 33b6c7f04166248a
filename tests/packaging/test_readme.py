"""What the README shows is what happens."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import click
import pytest
import torch

from halp_iee import models
from halp_iee.cli.main import cli

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_of_the_readme_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks("python")))
    torch.manual_seed(0)
    model = models.build("resnet20")
    batches = [(torch.randn(8, 1, 32, 32), torch.randint(0, 10, (8,))) for _ in range(45)]
    after = runpy.run_path(
        str(script),
        {
            "model": model,
            "example_inputs": torch.randn(1, 1, 32, 32),
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
            "loader": batches,
            "loss_function": torch.nn.functional.cross_entropy,
            "build_model": lambda: models.build("resnet20"),
        },
    )
    small, again = after["small"].eval(), after["again"].eval()
    assert torch.equal(small(batches[0][0]), again(batches[0][0]))
    assert after["iee"].cycle >= 1
    assert sum(p.numel() for p in small.parameters()) < 272_186


def test_every_command_line_of_the_readme_is_understood() -> None:
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("halp-iee ")]
    assert len(commands) >= 8
    for words in commands:
        context = click.Context(cli, info_name="halp-iee")
        _, command, rest = cli.resolve_command(context, words)
        command.make_context(command.name, list(rest), parent=context)  # parses, and runs nothing


def test_every_file_that_the_readme_links_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith(("http", "#")):
            assert (Path(__file__).parents[2] / target).exists(), target
