"""``python -m halp_profiler``: measures a sweep on a machine that has only the profiler and one runtime.

    python -m halp_profiler devices
    python -m halp_profiler run sweep.json --out table.jsonl
    python -m halp_profiler merge a.jsonl b.jsonl --out table.jsonl

The table is the only result; progress and errors go to stderr. Exit codes: 0 done, 1 error, 2 usage,
3 the device is not there or too unsteady, 130 interrupted (call again: it goes on where it stopped).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any

from halp_profiler import nvml
from halp_profiler import table as tables
from halp_profiler.backends.base import CACHES, LAYOUTS, PRECISIONS
from halp_profiler.devices import names_of, use_cores
from halp_profiler.errors import HalpError


def main(argv: Sequence[str] | None = None) -> int:
    """Parses, calls, prints; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        return int(args.call(args))
    except HalpError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        exec("")  # else CPython may end us by the signal: it remembers one that came within an exec() of a library
        print("Interrupted. The same command goes on where it stopped.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m halp_profiler", description="Times layers on a device.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="measure a sweep into a table")
    run.add_argument("sweep", help="what to measure, as `halp-iee profile --emit` writes it")
    run.add_argument("--out", required=True, help="the table; gone on with when it exists")
    run.add_argument("--device", help="cpu, cpu:0-3, cuda:0, or one from the datasheets; default: the sweep's")
    run.add_argument("--devices", help="several of one kind at once, e.g. cuda:0,cuda:1 or cpu:0;cpu:1")
    run.add_argument("--ray-workers", type=int, metavar="N", help="on N devices of a Ray cluster")
    run.add_argument("--backend", help="what runs the kernels; `devices` lists them; default: the sweep's")
    run.add_argument("--precision", choices=PRECISIONS, help="default: the sweep's")
    run.add_argument("--layout", choices=LAYOUTS, help="default: the sweep's, or the backend's own choice")
    run.add_argument("--l2", choices=CACHES, help="state of a GPU's second-level cache; default: the sweep's, or warm")
    run.add_argument("--threads", type=int, help="of the runtime; default: the sweep's")
    run.add_argument("--max-error", type=float, help="on held-out points; default: the sweep's")
    run.add_argument("--time-budget", type=float, metavar="SECONDS")
    run.add_argument("--exhaustive", action="store_true", help="every width")
    run.set_defaults(call=_run)
    merge = commands.add_parser("merge", help="one table from several of one device")
    merge.add_argument("tables", nargs="+")
    merge.add_argument("--out", required=True)
    merge.set_defaults(call=_merge)
    commands.add_parser("devices", help="what can be measured and modelled").set_defaults(call=_devices)
    return parser


def _run(args: argparse.Namespace) -> int:
    from halp_profiler import plan, sweep
    from halp_profiler.backends import backend_for
    from halp_profiler.devices import find

    wanted = plan.read(args.sweep)
    settings: dict[str, Any] = {
        "threads": args.threads or wanted.threads, "batch": wanted.batch,
        "precision": args.precision or wanted.precision, "backend": args.backend or wanted.backend,
        "layout": args.layout or wanted.layout, "l2": args.l2 or wanted.l2 or "warm",
    }  # fmt: skip
    asked: dict[str, Any] = {
        "mode": "exhaustive" if args.exhaustive else "adaptive", "max_error": args.max_error or wanted.max_error,
        "time_budget_s": args.time_budget or wanted.time_budget_s,
    }  # fmt: skip
    bar = _progress if sys.stderr.isatty() else None
    device = args.device or wanted.device
    if args.devices:
        from halp_profiler import fleet

        names = names_of(args.devices)
        result = fleet.run(names, wanted.ranges, args.out, settings=settings, progress=bar, **asked)
    elif args.ray_workers:
        from halp_profiler import fleet_ray

        result = fleet_ray.run(
            wanted.ranges, args.out, workers=args.ray_workers, device=device, settings=settings, **asked
        )
    else:
        found = find(device)
        use_cores(found)
        result = sweep.run(backend_for(found, **settings), wanted.ranges, args.out, progress=bar, **asked)
    for key, why in result.refused.items():
        print(f"left out: {key}: {why}", file=sys.stderr)
    source = tables.read(result.path).header.source
    known = f"held-out error median {result.held_out_error:.2%}, worst {result.worst_held_out_error:.2%}"
    print(
        f"{result.path}: {result.measured} points {source}, {result.resumed} were there, in {result.seconds:.1f} s; "
        + ("held-out error not known: no point was left for it" if math.isnan(result.held_out_error) else known)
        + ("" if result.complete else "; the time ran out before the error was reached"),
        file=sys.stderr,
    )
    return 0


def _progress(done: int, total: int, eta_s: float) -> None:
    end = "\n" if done == total else ""
    print(f"\r{done} of {total} points, {eta_s:.0f} s left   ", end=end, file=sys.stderr, flush=True)


def _merge(args: argparse.Namespace) -> int:
    merged = tables.merge(args.tables, args.out)
    print(f"{args.out}: {len(merged.points)} points", file=sys.stderr)
    return 0


def _devices(args: argparse.Namespace) -> int:
    from halp_profiler.backends.catalogue import CATALOGUE, missing
    from halp_profiler.devices import attached, known

    for device in attached():
        print(f"{device.name:12} {device.label} (attached)")
        for entry in CATALOGUE.values():
            if device.kind in entry.kinds:
                print(f"{'':12}   {entry.name:21} {missing(entry, device) or 'ready'}")
    if why := nvml.missing():
        print(f"no GPU: {why}")
    for device in known():
        print(f"{device.name:12} {device.label} (from its datasheet: modelled)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
