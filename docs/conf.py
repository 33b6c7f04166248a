"""How the documentation is built: ``make docs``, with warnings as errors."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "halp-iee"
author = "the halp-iee authors"
project_copyright = "the halp-iee authors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "commands"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_ext"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

html_theme = "furo"
html_title = "halp-iee"
html_copy_source = False

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 100

_SPAN = re.compile(r"(``.+?``|`[^`\n]+`)")
_SPECIAL = re.compile(r"(?<!\\)([|*]|(?<=\w)_(?!\w))")
_SECTION = re.compile(r"\s*(Args|Attributes|Raises|Returns|Yields|Example|Examples|Note|Notes):$")


def _plain(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings here are plain text with Markdown's back-ticks: a formula's ``|w|`` or ``a * b`` is no markup.

    What is indented behind a colon and a blank line is code or a formula, and is shown as it stands.
    """
    out: list[str] = []
    literal: int | None = None
    for at, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and indent <= literal:
            literal = None
        if literal is not None:
            out.append(line)
            continue
        rest = [later for later in lines[at + 1 :] if later.strip()]
        blank_follows = at + 1 < len(lines) and not lines[at + 1].strip()
        opens = blank_follows and bool(rest) and len(rest[0]) - len(rest[0].lstrip()) > indent
        if line.strip() and opens and not _SECTION.match(line):
            literal = indent
            out += [_escaped(line), "", " " * indent + "::"]
        else:
            out.append(_escaped(line))
    lines[:] = out


def _escaped(line: str) -> str:
    pieces = _SPAN.split(line)
    for i, piece in enumerate(pieces):
        if i % 2:
            pieces[i] = f"``{piece.strip('`')}``"
        elif not re.match(r"\s*\*{1,2}\w+:", piece):  # *args: and **kwargs: are napoleon's
            pieces[i] = _SPECIAL.sub(r"\\\1", piece)
    return "".join(pieces)


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _plain, priority=400)  # before napoleon reads the sections
