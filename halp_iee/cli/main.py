"""The command line: finds the command, runs it, and turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

import halp_iee
from halp_iee.errors import HalpError

_COMMANDS = {
    "quickstart": "Run the whole job on a small real example: profile, train, slim, export, measure, report.",
    "devices": "List the devices that can be measured here, and those that can be modelled.",
    "tables": "List, show and check latency tables.",
    "profile": "Time a network's layers over channel counts and write a latency table.",
    "graph": "Show which channels of a network are tied together, and what is frozen and why.",
    "prune": "Make a trained network fit a latency in one step.",
    "train": "Train a network to a latency, or to a sparsity.",
    "export": "Write a run's network as a file to deploy.",
    "bench": "Measure latency and FPS of networks side by side.",
    "report": "Write a run's report and model card again, or compare several runs.",
    "watch": "Follow a run in the terminal.",
    "doctor": "Say what a latency target will do to a network, before anyone trains.",
    "frontier": "Sweep importance against latency without training.",
}


class _Lazy(click.Group):
    """Imports a command's module when the command is asked for, so that --help is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        return importlib.import_module(f"halp_iee.cli.{cmd_name}").command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            near = get_close_matches(args[0], _COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_COMMANDS)}"
            raise click.UsageError(f"{error.message.rstrip('.')}: {hint}") from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(halp_iee.__version__, prog_name="halp-iee")
def cli() -> None:
    """Make a neural network physically smaller until it runs in the time you asked for, measured on your device.

    \b
      halp-iee quickstart
      halp-iee train --model resnet20 --data digits --latency-target 0.3
      halp-iee profile --gpu titanv --model resnet50

    Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 error, 2 usage, 3 the measurement is
    unstable or the device is not there, 4 the target cannot be met.
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(args))


def run(args: list[str] | None = None) -> int:
    """Run the command line; the exit code comes back instead of ending the process."""
    try:
        result = cli.main(args=args, prog_name="halp-iee", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except HalpError as error:
        _complain(str(error))
        return error.exit_code
    except click.UsageError as error:
        hint = f" Try '{error.ctx.command_path} --help'." if error.ctx else ""
        _complain(f"{error.format_message().rstrip('.')}.{hint}")
        return 2
    except click.ClickException as error:
        _complain(error.format_message())
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _forget_interrupt()
        _complain("interrupted; call the same command again and it goes on where it stopped")
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        _complain("out of memory: the network and batch do not fit. Take a smaller --batch-size or model.")
        return 1
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _complain(
            f"the file system refused{where}: {error.strerror or error}. Check the path, its rights and the free space."
        )
        return 1
    except Exception as error:
        if os.environ.get("HALP_IEE_TRACEBACK"):
            raise
        _complain(
            f"this is a fault of halp-iee ({type(error).__name__}: {error}). "
            "Set HALP_IEE_TRACEBACK=1, run it again, and report what it prints."
        )
        return 1


def _forget_interrupt() -> None:
    # Ctrl-C within an exec() of a library, such as the making of a dataclass, leaves CPython with a note to end
    # `python -m` by that signal, whatever code we exit with. Only another exec() takes the note away.
    exec("")


def _complain(line: str) -> None:
    print(f"halp-iee: {' '.join(line.split())}", file=sys.stderr, flush=True)
