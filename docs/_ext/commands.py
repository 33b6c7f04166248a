"""The directive ``commands``: every command of ``halp-iee`` with its help, as the command line itself prints it."""

from __future__ import annotations

from typing import Any

import click
from docutils import nodes
from docutils.parsers.rst import Directive


class Commands(Directive):
    """A section a command: its help text, in the order of ``halp-iee --help``."""

    def run(self) -> list[nodes.Node]:
        from halp_iee.cli.main import cli

        return [self._section(words, command) for words, command in _all(cli, ("halp-iee",))]

    def _section(self, words: tuple[str, ...], command: click.Command) -> nodes.section:
        title = " ".join(words[1:]) or "halp-iee"
        section = nodes.section(ids=[nodes.make_id(f"command-{title}")], names=[title])
        section += nodes.title(text=title)
        context: click.Context | None = None
        for word in words[:-1]:
            context = click.Context(command, info_name=word, parent=context)
        text = command.get_help(click.Context(command, info_name=words[-1], parent=context, terminal_width=100))
        section += nodes.literal_block(text, text, language="text")
        return section


def _all(command: click.Command, words: tuple[str, ...]) -> list[tuple[tuple[str, ...], click.Command]]:
    found = [(words, command)]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                found += _all(inner, (*words, name))
    return found


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True}
