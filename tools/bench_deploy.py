"""What deploying finished runs takes and gives: seconds and size of every export, latency beside the dense network in
every runtime that is installed, the size of the report and the seconds until it is open.

    python tools/bench_deploy.py RUN ... --work DIR [--seconds 2] [--markdown FILE]

Every figure comes from the command line as a person types it, in a process of its own. Finished items are kept in DIR,
so the bench can be run in pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
EXPORTS = (
    ("onnx", "fp32", False), ("onnx", "fp32", True), ("onnx", "fp16", False), ("onnx", "int8", False),
    ("openvino", "fp32", False), ("openvino", "int8", False), ("torch-export", "fp32", False),
    ("safetensors", "fp32", False), ("tensorrt", "fp16", False),
)  # fmt: skip
SUFFIX = {"onnx": "onnx", "openvino": "xml", "torch-export": "pt2", "safetensors": "safetensors", "tensorrt": "engine"}
PAINTED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"
Row = dict[str, Any]


def halp_iee(*arguments: object) -> tuple[int, Any, str, float]:
    """(exit code, the JSON document or None, the last line said, seconds)."""
    since = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "halp_iee", *map(str, arguments), "--json"], capture_output=True, text=True, check=False
    )
    took = time.perf_counter() - since
    said = done.stderr.replace("\r", "\n").strip().splitlines()
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else None, said[-1] if said else "", took


def exported(run: Path, folder: Path, form: str, precision: str, dynamic: bool) -> Row:
    """Where a run has no data, int8 is calibrated by random inputs and any loss is accepted: it is timed alone."""
    out = folder / f"{form}-{precision}{'-dynamic' if dynamic else ''}.{SUFFIX[form]}"
    options = ["--format", form, "--precision", precision, "--out", out] + (["--dynamic-batch"] if dynamic else [])
    of = about(run)
    blind = precision == "int8" and of["data"] is None
    if blind:
        inputs = folder / "inputs.npy"
        np.save(inputs, np.random.default_rng(0).standard_normal((32, *of["input_shape"])).astype(np.float32))
        options += ["--calibration", inputs, "--max-drop", 1]
    code, found, said, took = halp_iee("export", run, *options)
    row = {"format": form, "precision": precision, "dynamic": dynamic, "seconds": took, "code": code, "blind": blind}
    if found is None:
        return row | {"refused": said.removeprefix("halp-iee: ")}
    keys = ("bytes", "runtime", "max_error", "top1", "top1_torch", "latency_ms", "latency_fp32_ms", "notes")
    return row | {key: found[key] for key in keys}


def timed(run: Path, seconds: float) -> list[Row]:
    options = ["--against", run / "dense.onnx", "--runtime", "all", "--seconds", seconds]
    code, found, said, _ = halp_iee("bench", run, *options)
    if found is None:
        raise SystemExit(f"bench of {run} ended with {code}: {said}")
    return [{**row, "artifact": "dense" if row["artifact"].endswith("dense.onnx") else "slim"}
            for row in found["results"]]  # fmt: skip


def opened(run: Path) -> Row:
    """The page in headless Chromium: seconds from asking for it until it has been laid out and painted."""
    sys.path.insert(0, str(ROOT))
    from tests.export.browser import Browser, find

    page = run / "report.html"
    code, _, said, took = halp_iee("report", run)
    if code:
        raise SystemExit(f"report of {run} ended with {code}: {said}")
    row: Row = {"bytes": page.stat().st_size, "seconds_to_write": took, "seconds_to_open": None}
    if find() is None:
        return row
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(Path(profile))
        try:
            found = []
            for width in (1400, 400, 1400):
                since = time.perf_counter()
                browser.open(page, width=width)
                browser.call("Runtime.evaluate", expression=PAINTED, awaitPromise=True)
                found.append(time.perf_counter() - since)
            row |= {"seconds_to_open": max(found), "complaints": browser.complaints}
        finally:
            browser.close()
    return row


def about(run: Path) -> Row:
    result = json.loads((run / "result.json").read_text())
    keys = ("model", "data", "input_shape", "target", "top1", "params", "params_dense", "measured_ms", "target_ms")
    return {key: result.get(key) for key in keys}


def measure(run: Path, work: Path, seconds: float) -> Row:
    """All of one run; what an earlier call has found is not measured again."""
    kept = work / f"{run.name}.json"
    found: Row = json.loads(kept.read_text()) if kept.is_file() else {"about": about(run), "exports": []}

    def keep() -> None:
        partial = kept.with_suffix(".partial")
        partial.write_text(json.dumps(found, indent=1) + "\n")
        partial.replace(kept)
        print(f"{run.name}: {len(found['exports'])} of {len(EXPORTS)} exports, {', '.join(found)}", flush=True)

    done = {(row["format"], row["precision"], row["dynamic"]) for row in found["exports"]}
    with tempfile.TemporaryDirectory() as folder:
        for wanted in EXPORTS:
            if wanted not in done:
                found["exports"].append(exported(run, Path(folder), *wanted))
                keep()
    for name, part in (("bench", lambda: timed(run, seconds)), ("report", lambda: opened(run))):
        if name not in found:
            found[name] = part()
            keep()
    return found


def markdown(all_of: dict[str, Row]) -> str:
    from halp_profiler.devices import attached

    here = attached()[0].label
    lines = [
        "# Deploying", "",
        "What `tools/bench_deploy.py` printed: every export of finished runs by the command line, process start, "
        "parity gate and accuracy included; the slim network beside the dense one, run in turn; the report in "
        "Chromium.", "",
        f"{here}, {os.cpu_count()} cores, one thread, batch 1, Python {platform.python_version()}.",
    ]  # fmt: skip
    for name, one in all_of.items():
        of = one["about"]
        shape = "x".join(map(str, of["input_shape"]))
        weights = "random weights, no data" if of["data"] is None else "trained a little, on digits drawn at this size"
        lines += [
            "",
            f"## {of['model']}, {shape}, asked for {of['target']} of dense",
            "",
            f"Run `{name}`: {weights}.",
            "",
        ]
        lines += ["| file | seconds | MB | error | top-1 | ms | of single precision |",
                  "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
        lines += [_export(row) for row in sorted(one["exports"], key=_place)]
        refused = [row for row in one["exports"] if "refused" in row]
        lines += ["", *(f"- {_what(row)}, exit code {row['code']}: {row['refused']}" for row in refused)]
        lines += [f"- {note}" for note in dict.fromkeys(n for r in one["exports"] for n in r.get("notes", ()))]
        lines += ["", "| runtime | dense ms | slim ms | slim / dense | 95% interval | verdict |",
                  "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
        lines += _bench(one["bench"])
        page = one["report"]
        opened_s = page["seconds_to_open"]
        seen = "not opened: no Chromium" if opened_s is None else f"open in {opened_s:.2f} s"
        lines += ["", f"Report: {page['bytes'] / 1e6:.2f} MB, {seen}."]
    return "\n".join(lines) + "\n"


def _place(row: Row) -> int:
    return EXPORTS.index((row["format"], row["precision"], row["dynamic"]))


def _what(row: Row) -> str:
    return (
        f"{row['format']} {row['precision']}"
        + (", open batch" if row["dynamic"] else "")
        + (", random inputs" if row.get("blind") else "")
    )


def _export(row: Row) -> str:
    if "refused" in row:
        return f"| {_what(row)} | {row['seconds']:.1f} | - | refused, below | - | - | - |"
    error = "-" if row["max_error"] is None else f"{row['max_error']:.1e}"
    top1 = "-" if row["top1"] is None else f"{row['top1']:.2%} ({100 * (row['top1'] - row['top1_torch']):+.2f})"
    ms = "- | -" if row["latency_ms"] is None else (
        f"{row['latency_ms']:.4g} | x{row['latency_ms'] / row['latency_fp32_ms']:.3g}"
    )  # fmt: skip
    return f"| {_what(row)} | {row['seconds']:.1f} | {row['bytes'] / 1e6:.2f} | {error} | {top1} | {ms} |"


def _bench(rows: list[Row]) -> list[str]:
    dense = {row["runtime"]: row for row in rows if row["artifact"] == "dense"}
    lines = []
    for row in rows:
        if row["artifact"] == "slim" and (beside := dense.get(row["runtime"])):
            shaky = ", unsteady" if row["unstable"] or beside["unstable"] else ""
            lines.append(
                f"| {row['runtime']} | {beside['median_ms']:.4g} | {row['median_ms']:.4g} | {row['ratio']:.3f} | "
                f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f} | {row['verdict']}{shaky} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing for each network in each runtime")
    parser.add_argument("--markdown", type=Path)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    found = {run.name: measure(run, asked.work, asked.seconds) for run in asked.runs}
    text = markdown(found)
    print(text)
    if asked.markdown:
        asked.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
