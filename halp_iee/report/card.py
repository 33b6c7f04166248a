"""A folder that can be uploaded as it is: the network's files and a model card by the habits of model hubs."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halp_iee.errors import ArtifactError
from halp_iee.report import text
from halp_iee.report.text import number

Data = Mapping[str, Any]
UNKNOWN_LICENSE = "unknown"
_FOLDERS = re.compile(r"[^\s:=]*/")
_LOAD_ONNX = """\
import numpy as np
import onnxruntime as ort

session = ort.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
images = np.zeros({shape}, dtype=np.float32)  # {about}
(scores, *_) = session.run(None, {{session.get_inputs()[0].name: images}})
"""
_LOAD_TORCH = """\
import halp_iee
from halp_iee import models

dense = models.build({model}{options})  # the network it was made from
network = halp_iee.load("model.safetensors", dense).eval()
"""


def card(result: Data, *, exports: Sequence[Data] = (), license: str = UNKNOWN_LICENSE, reproduce: str = "") -> str:
    """The model card: a YAML header that hubs read, then what it is, how fast, how good, and how to load it.

    Args:
        result: of the run.
        exports: the run's exports, as recorded, that lie in the folder under their file names.
        license: of the weights, by its SPDX or hub identifier.
        reproduce: the command line of the run.
    """
    title = f"# {_md(_name(result))}, made smaller for {_md(result.get('device') or 'its device')}"
    parts = [
        _header(result, license), title,
        _summary(result), "## How fast and how good", _figures(result), _measured_how(result), _exports(exports),
        "## How to load it", _loading(result), "## How it was made", _making(result, reproduce), "## Licence",
        _licence(license),
    ]  # fmt: skip
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _name(result: Data) -> str:
    model = str(result.get("model") or "A network")
    return Path(model.split(".py:")[0]).name + ("" if ".py:" not in model else f" {model.rpartition(':')[2]}")


def _header(result: Data, license: str) -> str:
    """YAML whose strings are written as JSON, which YAML contains, so nothing in them can break out."""
    top1 = number(result.get("top1"))
    task = "image-classification"
    lines = [
        f"license: {_yaml(license)}", f"library_name: {_yaml('onnx')}",
        f"tags: {_yaml(['pruning', 'channel-pruning', 'latency', 'onnx', 'safetensors', 'halp-iee'])}",
    ]  # fmt: skip
    if top1 is not None:
        metric = {"type": "accuracy", "value": round(top1, 6), "name": "Top-1 on the test set"}
        entry = {"task": {"type": task}, "dataset": {"type": _data(result), "name": _data(result)}, "metrics": [metric]}
        lines.insert(1, f"pipeline_tag: {task}")
        lines += [f"metrics: {_yaml(['accuracy'])}"]
        lines += [f"model-index: {_yaml([{'name': _name(result), 'results': [entry]}])}"]
    return "\n".join(["---", *lines, "---"])


def _yaml(value: Any) -> str:
    """As JSON, with the characters that are not plain ASCII as YAML escapes them."""
    text = json.dumps(value, ensure_ascii=False)
    escaped = ((one, ord(one)) for one in text)
    return "".join(one if 32 <= at < 127 else f"\\u{at:04x}" if at < 65536 else f"\\U{at:08x}" for one, at in escaped)


def _data(result: Data) -> str:
    """The data set without the folder in which it lay: a card is for others."""
    return str(result.get("data") or "").split(":")[0]


def _md(value: object) -> str:
    """Text that Markdown and HTML leave alone."""
    plain = " ".join(str(value).split())
    for sign in "\\`*_[]<>|#":
        plain = plain.replace(sign, f"\\{sign}" if sign not in "<>" else {"<": "&lt;", ">": "&gt;"}[sign])
    return plain


def _summary(result: Data) -> str:
    measured, dense = number(result.get("measured_ms")), number(result.get("dense_measured_ms"))
    device = _md(result.get("device") or "its device")
    if measured is not None and dense is not None:
        fast = (
            f"It runs in {text.ms(measured)} where the dense network takes {text.ms(dense)}, both measured on {device}."
        )
    else:
        word = "modelled" if result.get("source") == "modelled" else "predicted"
        fast = f"Its latency is {word} at {text.ms(result.get('predicted_ms'))} on {device}; it was not measured there."
    about = f" trained on `{_data(result)}`" if _data(result) else ""
    return (
        f"A physically smaller {_md(_name(result))}{about}: whole channels were removed until it met a latency of "
        f"{text.ms(result.get('target_ms'))} by halp-iee. {fast}"
    )


def _figures(result: Data) -> str:
    lines = [
        ("latency, measured", text.ms, "dense_measured_ms", "measured_ms"),
        ("frames a second", text.fps, "fps_dense", "fps"),
        ("top-1 on the test set", lambda value: text.percent(value, 2), "top1_dense", "top1"),
        ("parameters", text.big, "params_dense", "params"), ("MACs", text.big, "macs_dense", "macs"),
    ]  # fmt: skip
    rows = "".join(
        f"| {label} | {form(result.get(dense))} | {form(result.get(slim))} |\n" for label, form, dense, slim in lines
    )
    return f"| | dense | this network |\n| --- | ---: | ---: |\n{rows}"


def _measured_how(result: Data) -> str:
    if number(result.get("measured_ms")) is None:
        return "The latency is not a measurement."
    shaky = " The measurement was unsteady: other work ran on the machine." if result.get("unstable") is True else ""
    threads = "one thread" if result.get("threads") == 1 else f"{result.get('threads')} threads"
    return (
        f"Latency is the median of one call with a batch of {result.get('batch')} on {_md(result.get('device'))}, "
        f"{_md(result.get('runtime'))}, {threads}, the dense and this network timed in turn."
        f"{shaky} On another device it is another one: measure there."
    )


def _exports(exports: Sequence[Data]) -> str:
    rows = ""
    for one in exports:
        pair = f"{text.ms(one.get('latency_ms'), '-')} ({text.ms(one.get('latency_fp32_ms'), '-')} in fp32)"
        latency = pair if number(one.get("latency_ms")) is not None else "-"
        rows += (
            f"| `{Path(str(one.get('path'))).name}` | {_md(one.get('precision'))} | {_md(one.get('runtime'))} "
            f"| {text.percent(one.get('top1'), 2, '-')} | {latency} |\n"
        )
    head = "| file | precision | runtime | top-1 | latency |\n| --- | --- | --- | ---: | ---: |\n"
    return f"Further files, each checked against this network in its runtime:\n\n{head}{rows}" if rows else ""


def _loading(result: Data) -> str:
    shape = result.get("input_shape") or []
    batch = result.get("batch") or 1
    prepared = f"prepared as halp-iee prepares `{_data(result)}`" if _data(result) else "as the network takes them"
    onnx = _LOAD_ONNX.format(shape=(batch, *shape), about=f"images, {prepared}".replace("`", ""))
    model = str(result.get("model") or "")
    options = "" if result.get("num_classes") is None else (
        f", num_classes={result['num_classes']}, in_channels={shape[0] if shape else 3}"
        f", image_size={shape[-1] if shape else 224}"
    )  # fmt: skip
    local = f"{Path(model.split('.py:')[0]).name}.py:{model.rpartition(':')[2]}" if ".py:" in model else model
    torch = _LOAD_TORCH.format(model=json.dumps(local), options=options)
    return (
        f"With ONNX Runtime and numpy alone:\n\n```python\n{onnx}```\n\nIn torch, to train it further:\n\n"
        f"```python\n{torch}```\n\nNeither file holds a pickle; loading them runs no code of theirs."
    )


def _making(result: Data, reproduce: str) -> str:
    solver = f", the widths chosen by the solver `{result['solver']}`" if result.get("solver") else ""
    ratio = number(result.get("train_flops_ratio"))
    cost = "" if ratio is None else f" Its training took {ratio:.1%} of the FLOPs of training the dense network."
    # Of the command only what names no place on the machine that ran it.
    words = _FOLDERS.sub("", reproduce).strip().replace("```", "'''")
    again = f"\n\n```sh\n{words}\n```" if words else ""
    maker = f"halp-iee {_md(result.get('version'))}"
    return f"Method {_md(result.get('method'))}, seed {_md(result.get('seed'))}{solver}, {maker}.{cost}{again}"


def _licence(license: str) -> str:
    if license == UNKNOWN_LICENSE:
        return (
            "Not stated by those who trained it. `halp-iee report RUN --license apache-2.0` states it here and in the "
            "header."
        )
    return f"{_md(license)}."


def write_folder(
    folder: Path, result: Data, files: Sequence[Path], *, exports: Sequence[Data] = (),
    license: str = UNKNOWN_LICENSE, reproduce: str = "",
) -> Path:  # fmt: skip
    """Make the folder, or make it again: README.md, the files (linked where the file system can), config.json.

    The new folder takes the old one's place when all of it is there.

    Raises:
        ArtifactError: it cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent) as place:
            new = Path(place) / "new"
            new.mkdir()
            for file in files:
                _link(file, new / file.name)
            about = card(result, exports=exports, license=license, reproduce=reproduce)
            (new / "README.md").write_text(about, encoding="utf-8")
            (new / "config.json").write_text(json.dumps(_config(result), indent=1) + "\n", encoding="utf-8")
            if folder.exists():
                os.replace(folder, Path(place) / "old")
            os.replace(new, folder)
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {folder}", (error.strerror or str(error)).lower(), "Make the run's directory writable"
        ) from error
    return folder


def _link(file: Path, place: Path) -> None:
    """A second name where that is possible: files of a run are replaced, never changed."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


def _config(result: Data) -> dict[str, Any]:
    keys = (
        "num_classes",
        "input_shape",
        "target_ms",
        "measured_ms",
        "device",
        "runtime",
        "threads",
        "batch",
        "version",
    )
    return {"model": _name(result), "data": _data(result), **{key: result.get(key) for key in keys}}
