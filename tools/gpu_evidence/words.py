"""The summary: ``evidence.json`` for programs, ``evidence.md`` for people; written anew after every part."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpu_evidence.part import rows_of

Row = dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """How a part ended; ``why`` is empty when it did all of it."""

    name: str
    seconds: float
    why: str


def has_gpu(out: Path) -> bool:
    return any(row.get("gpu") for row in rows_of(out, "environment"))


def write(out: Path, ended: Sequence[Ended]) -> None:
    rows = {one.name: rows_of(out, one.name) for one in ended}
    document = {"parts": [asdict(one) for one in ended], "rows": rows, "tables": _files(out)}
    _whole(out / "evidence.json", json.dumps(document, indent=1) + "\n")
    _whole(out / "evidence.md", _page(rows, ended, out))


def _whole(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _files(out: Path) -> list[Row]:
    """Every table that lies there, those of parts that were cut off too: its points, and its size."""
    found = []
    for path in sorted((out / "tables").glob("*.jsonl")):
        text = path.read_text(encoding="utf-8", errors="replace")
        points = {line.partition('"median_ms"')[0] for line in text.splitlines() if '"c_in"' in line}  # read again: one
        found.append({"file": path.name, "points": len(points), "bytes": len(text)})
    return found


def _page(rows: dict[str, list[Row]], ended: Sequence[Ended], out: Path) -> str:
    parts = ["# On a GPU", _machine(rows.get("environment", []))]
    for name, found in rows.items():
        kind = name.split("-")[0]
        if kind in _SECTIONS and found:
            title, section = _SECTIONS[kind]
            parts.append(f"## {title}{_setting(name)}\n\n{section(found)}")
    parts.append("## Tables\n\n" + _table(["file", "points", "KiB"], [
        [f"`{one['file']}`", str(one["points"]), f"{one['bytes'] / 1024:.0f}"] for one in _files(out)]))  # fmt: skip
    parts.append("## How the parts ended\n\n" + _table(["part", "seconds", ""], [
        [one.name, f"{one.seconds:.0f}", one.why or "done"] for one in ended]))  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _setting(name: str) -> str:
    bits = name.split("-")[1:]
    return f", batch {bits[0][1:]}, {bits[1]}" if len(bits) == 2 else ""


def _machine(found: list[Row]) -> str:
    if not found:
        return "The machine could not be described."
    one = found[0]
    gpu, packages = one["gpu"], one["packages"]
    where = f"{one['processor']}, without a GPU" if gpu is None else (
        f"{gpu['name']} ({gpu['memory_gb']:.0f} GB, CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']}"
        + (f", driver {gpu['driver_says']['driver_version']}" if gpu.get("driver_says") else "")
        + f"), {one['processor']}"
    )  # fmt: skip
    tiny = " Tiny sizes: these figures only show that the parts run." if one["tiny"] else ""
    return f"Written by `tools/gpu_evidence.sh` on {where}, torch {packages['torch']}.{tiny}"


def _sweep(found: list[Row]) -> str:
    return _table(["network", "backend", "layout", "kernels", "points", "s", "held out", "worst", "sum of layers"], [
        [r["network"], r["backend"], r["layout"], str(r["kernels"]), str(r["points"]), f"{r['seconds']:.0f}",
         _share(r["held_out_error"]), _share(r["worst_held_out_error"]), _ms(r["sum_of_layers_ms"])]
        for r in found])  # fmt: skip


def _predicted(found: list[Row]) -> str:
    held = [r for r in found if r.get("role") == "held-out" and r.get("error") is not None]
    lines = _table(["role", "widths", "raw ms", "predicted ms", "measured ms", "of dense", "error"], [
        [r["role"], r.get("kind", ""), _ms(r.get("raw_ms")), _ms(r.get("predicted_ms")), _ms(r.get("measured_ms")),
         _share(r.get("of_dense")), _share(r.get("error"), sign=True)]
        for r in found if r.get("role") in ("dense", "calibration", "held-out")])  # fmt: skip
    if not held:
        return lines
    errors = np.abs([r["error"] for r in held])
    within = f"{int((errors <= 0.05).sum())} within 5%, {int((errors <= 0.1).sum())} within 10%"
    return (
        f"{lines}\n\nOf {len(held)} networks that calibration never saw: median error {np.median(errors):.1%}, "
        f"worst {errors.max():.1%}; {within}."
    )


def _solved(found: list[Row]) -> str:
    return _table(
        ["network", "asked", "measured ms", "of dense", "FPS", "GMACs", "M params", "gap", "mJ an image"],
        [[r["network"] + (", at the floor" if r.get("floor_is_above_target") else ""),
          _share(r.get("target")), _ms(r["measured_ms"]), _share(r.get("of_dense")), f"{r['fps']:.0f}",
          f"{r['macs'] / 1e9:.2f}", f"{r['params'] / 1e6:.2f}", _share(r.get("gap")),
          "-" if r.get("energy_mj") is None else f"{r['energy_mj']:.3g}"] for r in found],
    )  # fmt: skip


def _training(found: list[Row]) -> str:
    lines = _table(["", "batch", "precision", "ms a step", "of dense", "images/s", "s an epoch", "peak GB"], [
        [r["variant"], str(r["batch"]), r["precision"], _ms(r["step_ms"]), _share(r["of_dense"]),
         f"{r['images_a_second']:.0f}", f"{r['epoch_seconds']:.0f}",
         "-" if r["peak_gb"] is None else f"{r['peak_gb']:.1f}"] for r in found])  # fmt: skip
    return (
        f"{lines}\n\n{found[0]['network']}; the structure: {found[0]['structure']}. An epoch is {found[0]['epoch_is']}."
    )


def _layers(found: list[Row]) -> str:
    names = list(dict.fromkeys(name for r in found for name in r["ms"]))
    return _table(["layer", "kind", "sparsity", "batch", "type", *(f"{name} us" for name in names)], [
        [r["layer"], r["kind"], _share(r["sparsity"]), str(r["batch"]), r["dtype"],
         *(f"{1000 * r['ms'][name]:.1f}" if name in r["ms"] else "-" for name in names)] for r in found])  # fmt: skip


def _iee(found: list[Row]) -> str:
    return _table(["", "epochs", "seconds", "s an epoch", "top-1", "predicted share", "parameters"], [
        [r["variant"], str(r["epochs"]), f"{r['seconds']:.1f}", f"{r['epoch_seconds']:.2f}", _share(r["top1"]),
         _share(r["predicted_share"]), str(r["parameters"])] for r in found])  # fmt: skip


_SECTIONS: dict[str, tuple[str, Callable[[list[Row]], str]]] = {
    "sweep": ("Latency table", _sweep),
    "predicted": ("Predicted against measured", _predicted),
    "solved": ("The solver's networks beside the dense one", _solved),
    "training": ("Seconds of training", _training),
    "layers": ("Sparse linear layers", _layers),
    "iee": ("IEE on handwritten digits", _iee),
}


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _share(value: float | None, *, sign: bool = False) -> str:
    return "-" if value is None else f"{100 * value:{'+' if sign else ''}.3g}%"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
