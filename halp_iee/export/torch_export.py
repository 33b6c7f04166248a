"""Networks as programs of torch.export: a zip archive of JSON and raw weights, without the pickle that torch adds."""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from halp_iee.errors import ArtifactError, GraphError
from halp_iee.export.call import Call, at_least_two
from halp_iee.export.onnx import positional_names, quiet, root_cause

_PROVENANCE = "halp_iee.json"
_OPERATORS = re.compile(r"torch\.ops\.\w+(\.\w+)+|torch\.sym_\w+|_operator\.\w+|math\.\w+")
_SYNTAX = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Compare,
    ast.operator, ast.unaryop, ast.cmpop,
)  # fmt: skip


def program_of(model: nn.Module, call: Call, *, dynamic_batch: bool) -> ExportedProgram:
    """The network as a graph of ATen operations.

    Raises:
        GraphError: torch.export cannot express it.
    """
    if dynamic_batch:
        call = at_least_two(call)
    try:
        shapes = None
        if dynamic_batch:
            batch = torch.export.Dim("batch", min=1)
            shapes = pytree.tree_map(
                lambda leaf: {0: batch} if isinstance(leaf, torch.Tensor) and leaf.dim() else None,
                {**dict(zip(positional_names(model, len(call.args)), call.args, strict=True)), **call.kwargs},
            )
        with quiet(), torch.no_grad():
            return torch.export.export(model, call.args, call.kwargs or None, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise GraphError(
            "Cannot export the network by torch.export", root_cause(error),
            "Change the operation named" + (", or export with a fixed batch" if dynamic_batch else ""),
        ) from error  # fmt: skip


def write_program(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Save it so that reading it back needs no pickle.

    torch.export.save keeps the example inputs, and those alone, as a pickle. They are not part of the program, so
    they are taken out first; then the archive holds the graph as JSON and the weights as raw bytes.

    Raises:
        GraphError: some constant of the network can only be saved as a pickle.
    """
    program._example_inputs = None  # the public setter takes inputs only, not their absence
    with quiet():
        # into memory first: on a full disk torch's own writer of archives ends the process
        torch.export.save(program, archive := io.BytesIO(), extra_files={_PROVENANCE: json.dumps(dict(metadata))})
    path.write_bytes(archive.getvalue())
    if found := _pickled(path):
        raise GraphError(
            "Cannot export the network by torch.export", f"its part {found} would be a pickle",
            "Keep constants as plain tensors, or export to ONNX",
        )  # fmt: skip


def read_program(path: Path) -> ExportedProgram:
    """Read a ``.pt2`` file; one that could run code when it is read is refused.

    Beside pickles these are names of functions outside torch's operators, and sizes that are no plain
    arithmetic (torch hands them to sympy, which evaluates them).

    Raises:
        ArtifactError: missing, broken, or not safe to read.
    """
    if not path.is_file():
        raise ArtifactError(f"Cannot open {path}", "there is no such file", "Give the path of a .pt2 file")
    remedy = "Give a file that halp-iee export --format torch-export wrote"
    try:
        danger = _pickled(path) or _strange(path)
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, RecursionError) as error:
        raise ArtifactError(f"Cannot read {path}", f"it is broken: {_line(error)}", remedy) from None
    if danger:
        raise ArtifactError(f"{path} is not read", f"it could run code: {danger}", remedy)
    try:
        with quiet():
            return torch.export.load(str(path))
    except Exception as error:  # whatever torch makes of a graph that was edited
        raise ArtifactError(f"Cannot read {path}", f"it is broken: {root_cause(error)}", remedy) from error


def provenance_of(path: Path) -> dict[str, str]:
    """What was recorded about its making; empty where it was made elsewhere."""
    with zipfile.ZipFile(path) as archive:
        name = next((n for n in archive.namelist() if n.endswith(f"extra/{_PROVENANCE}")), None)
        found = json.loads(archive.read(name)) if name else {}
    return found if isinstance(found, dict) else {}


def _pickled(path: Path) -> str | None:
    """The first part of the archive that is or holds a pickle."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            inner = info.filename.split("/", 1)[-1]
            if inner.endswith("_config.json"):
                config = json.loads(archive.read(info))
                for name, entry in dict(config.get("config", {})).items():
                    if entry.get("use_pickle") or str(entry.get("path_name", "")).startswith("custom_obj"):
                        return str(name)
            elif inner.endswith((".pt", ".pth", ".pkl", ".pickle")) and info.file_size:
                return inner
            elif not inner.startswith(("data/weights/", "data/constants/")) and info.file_size:
                with archive.open(info) as part:
                    if part.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"):
                        return inner
    return None


def _strange(path: Path) -> str | None:
    """A function that is no operator, or a size that is no arithmetic."""
    with zipfile.ZipFile(path) as archive:
        graphs = [name for name in archive.namelist() if "/models/" in name and name.endswith(".json")]
        if not graphs:
            raise ValueError("it holds no program")
        for name in graphs:
            for key, text in _strings(json.loads(archive.read(name))):
                if key == "target" and not _OPERATORS.fullmatch(text):
                    return f"it calls {text[:80]!r}"
                if key in ("expr_str", "as_expr") and not _is_arithmetic(text):
                    return f"it has the size {text[:80]!r}"
    return None


def _is_arithmetic(text: str) -> bool:
    """Whether a size is numbers, named symbols, operators and sympy's classes of them, and nothing else."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    named = [node for node in nodes if isinstance(node, ast.Call)]
    symbols = {id(arg) for call in named if ast.unparse(call.func) in ("Symbol", "Dummy") for arg in call.args}
    for node in nodes:
        if not isinstance(node, _SYNTAX) or (isinstance(node, ast.Call) and not isinstance(node.func, ast.Name)):
            return False
        if isinstance(node, ast.Name) and not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*", node.id):
            return False
        # A string is a symbol's name, or else something that sympy would evaluate once more.
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in symbols or not re.fullmatch(r"\w+", node.value):
                return False
        elif isinstance(node, ast.Constant) and not isinstance(node.value, (int, float)):
            return False
    called = {node.func.id for node in named if isinstance(node.func, ast.Name)}
    return all(name[:1].isupper() for name in called)


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            # the targets of input and output specifications name parameters, those of nodes name functions
            if name == "signature":
                continue
            yield from _strings(item, name)


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
