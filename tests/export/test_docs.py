"""The documentation: the tutorial runs, every command is one, every link leads somewhere, and the site builds."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from halp_iee.cli.main import cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
OURS = [*DOCS.glob("tutorial/*.md"), *DOCS.glob("howto/*.md"), *DOCS.glob("explanation/*.md"),
        *DOCS.glob("reference/*.md"), DOCS / "index.md"]  # fmt: skip
_BLOCK = re.compile(r"(?P<prints><!-- prints -->\s*)?^```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str, int]]:
    """(kind, body, line) of every block; the text behind a ``<!-- prints -->`` has the kind ``prints``."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        kind = "prints" if match["prints"] else match["kind"]
        found.append((kind, match["body"], text[: match.start("body")].count("\n") + 1))
    return found


def test_the_tutorial_runs_as_it_stands(tmp_path):
    """In one process, as a reader would: shell blocks by bash, Python blocks in one namespace.

    Exit codes 3 and 4 say what the machine's clock did meanwhile (unsteady, target missed), and the page says so.
    """
    steps = blocks(DOCS / "tutorial" / "first_network.md")
    assert {kind for kind, _, _ in steps} == {"sh", "python", "prints"}
    script = ["import contextlib, io, subprocess, sys", "here = {'__name__': 'tutorial'}", "printed = ''"]
    for kind, body, line in steps:
        if kind == "sh":
            script += [f"code = subprocess.run(['bash', '-euo', 'pipefail', '-c', {body!r}]).returncode",
                       f"sys.exit(f'line {line}: exit code {{code}}') if code not in (0, 3, 4) else None"]  # fmt: skip
        elif kind == "python":
            script += [f"code = compile({chr(10) * (line - 1) + body!r}, 'first_network.md', 'exec')",
                       "with contextlib.redirect_stdout(io.StringIO()) as said: exec(code, here)",
                       "printed = said.getvalue()"]  # fmt: skip
        else:
            script.append(f"assert printed == {body!r}, printed")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)], cwd=tmp_path, capture_output=True, text=True, timeout=400,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "report.html").is_file()


def _commands(page: Path) -> list[list[str]]:
    found = []
    for kind, body, _ in blocks(page):
        for line in body.replace("\\\n", " ").splitlines() if kind == "sh" else []:
            words = shlex.split(line, comments=True)
            while words and ("=" in words[0] or words[0] in ("torchrun", "sudo")):
                words.pop(0)
            if "halp-iee" in words[:1]:
                found.append(words[1:])
    return found


def test_every_command_of_the_documentation_is_understood():
    """Parsed as the command line would, without being run."""
    seen = 0
    for page in OURS:
        for words in _commands(page):
            words = words[: next((i for i, word in enumerate(words) if word in (">", "|", "&&", ";")), None)]
            words = [word for word in words if not (word.startswith("[") or word.endswith("]"))]
            context = click.Context(cli, info_name="halp-iee")
            name, command, rest = cli.resolve_command(context, words)
            while isinstance(command, click.Group) and rest:
                name, command, rest = command.resolve_command(click.Context(command), rest)
            try:
                command.make_context(name, list(rest), parent=context)
            except click.UsageError as error:
                pytest.fail(f"{page.name}: halp-iee {' '.join(words)}: {error.format_message()}")
            seen += 1
    assert seen > 25


def test_the_python_of_the_documentation_compiles_and_what_it_imports_is_there():
    for page in OURS:
        for kind, body, line in blocks(page):
            if kind != "python":
                continue
            compile(body, f"{page.name}:{line}", "exec")
            for module, names in re.findall(r"^from (halp_\S+) import ([\w, ]+)", body, re.MULTILINE):
                loaded = importlib.import_module(module)
                for name in names.split(","):
                    plain = name.split(" as ")[0].strip()
                    assert hasattr(loaded, plain) or importlib.util.find_spec(f"{module}.{plain}"), f"{module}.{plain}"


def test_every_link_of_the_documentation_leads_to_a_file():
    for page in OURS:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://", "mailto:")):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} -> {target}"


def test_the_site_builds_without_a_warning(tmp_path):
    for package in ("sphinx", "myst_parser", "furo"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'halp-iee[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path / "site")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "site" / "reference" / "python.html").read_text()
    for name in ("halp_iee.trace", "halp_iee.IEE", "halp_iee.export.onnx.export_onnx"):
        assert f'id="{name}"' in page, name
    assert "--latency-target" in (tmp_path / "site" / "reference" / "commands.html").read_text()
