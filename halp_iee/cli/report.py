"""`halp-iee report`: a run's page, made again."""

from __future__ import annotations

from pathlib import Path

import click

from halp_iee.cli import options, show


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@options.json_flag
def command(run: Path, as_json: bool) -> int:
    """Write a run's report again, from what the run recorded."""
    from halp_iee.run.reload import finished_run
    from halp_iee.run.results import write_report

    directory, result = finished_run(run)
    path = write_report(directory, result)
    if as_json:
        show.emit_json({"report": str(path)})
    else:
        show.line(path)
    return 0
