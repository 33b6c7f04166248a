"""`halp-iee watch`: follow a run in the terminal."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from halp_iee.cli import options, show

if TYPE_CHECKING:
    from halp_iee.report.follow import State, Training


@click.command("watch", cls=show.Command)
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--once", is_flag=True, help="Say where it stands and end.")
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, metavar="SECONDS")
@options.json_flag
def command(run: Path, once: bool, interval: float, as_json: bool) -> int:
    """Follow a running or finished run: stage, epochs, latency against the target, time to go.

    Ends when the run is finished, or when no process is at work on it. It only reads, so it may be called from
    another terminal or another machine that sees the same files.

    \b
      halp-iee watch runs/quickstart
    """
    from halp_iee.report.follow import state_of

    state = state_of(run)
    if as_json:
        show.emit_json({**asdict(state), "left_s": state.left_s})
        return 0
    if once or state.result is not None or not state.running:
        show.line(lines(state))
        return 0
    return _follow(run, state, interval)


def _follow(run: Path, state: State, interval: float) -> int:
    from halp_iee.report.follow import state_of

    stdout = click.get_current_context().obj
    shown = ""
    if stdout.isatty():
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        with Live(Text(lines(state)), console=Console(file=stdout), auto_refresh=False) as live:
            while state.result is None and state.running:
                time.sleep(interval)
                state = state_of(run)
                live.update(Text(lines(state)), refresh=True)
        return 0
    while True:
        now = lines(state)
        if now != shown:
            show.line(now + "\n")
            stdout.flush()
            shown = now
        if state.result is not None or not state.running:
            return 0
        time.sleep(interval)
        state = state_of(run)


def lines(state: State) -> str:
    """The state as a person reads it."""
    model, data, method, target = (state.config.get(key) for key in ("model", "data", "method", "target"))
    alone = "" if state.running or state.result else ", no process is at work on it"
    aim = "to a sparsity" if target is None else f"target {target}"
    found = [f"{model} on {data or 'no data'}, {method}, {aim}", f"stage     {state.stage}{alone}"]
    if state.target_ms is not None:
        found.append(f"asked     {state.target_ms:.4g} ms")
    found += [_training(one, state) for one in state.trainings]
    if state.result is not None and "sparsity" in state.result:
        found.append(f"sparsity  {state.result['sparsity']:.2%}, top-1 {state.result['top1']:.2%}")
    elif state.result is not None:
        found += ["", show.side_by_side(dict(state.result)), "", show.verdict(dict(state.result))]
    elif not state.running:
        found.append("call the command that began it again; it goes on where it stopped")
    elif state.left_s is not None:
        found.append(f"to go     about {_seconds(state.left_s)} of training")
    return "\n".join(found)


def _training(one: Training, state: State) -> str:
    epochs = f"epoch {one.epoch}" + ("" if one.epochs is None else f" of {one.epochs}")
    parts = [f"{one.name:<9} {_bar(one)}{epochs}"]
    if one.loss is not None:
        parts.append(f"loss {one.loss:.3f}")
    if one.top1 is not None:
        parts.append(f"top-1 {100 * one.top1:.2f}%")
    if one.epoch_s is not None:
        parts.append(f"{_seconds(one.epoch_s)} an epoch")
    if one.latency_ms is not None:
        share = f" ({one.latency_ms / state.target_ms:.0%} of the target)" if state.target_ms else ""
        parts.append(f"after {one.change}: {one.latency_ms:.4g} ms{share}")
    return ", ".join(parts)


def _bar(one: Training, width: int = 20) -> str:
    if not one.epochs:
        return ""
    done = min(width, width * one.epoch // one.epochs)
    full, empty = ("█", "░") if (sys.stdout.encoding or "").lower().startswith("utf") else ("#", ".")
    return f"{full * done}{empty * (width - done)} "


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 100 else f"{value / 60:.1f} min"
