"""A training run on disk: one safetensors file, written whole or not at all.

Tensors are named `model/...` (parameters and buffers, at the size that they have now), `average/...`
(likewise), `optimizer/PARAMETER//SLOT`, `method/...`, `examples/...` and `rng/PROCESS/...`; the rest is JSON
in the file's metadata. Reading runs no code.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from halp_iee.errors import CheckpointError
from halp_iee.train.method import Method
from halp_profiler.files import whole

FORMAT = "halp-iee checkpoint 2"
Generators = tuple[Mapping[str, Tensor], Mapping[str, Any]]
_SLOT = "//"  # between a parameter's name and the optimizer's name for a piece of its state


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        position: where the run stands; the loop's own record.
        fingerprint: what the run is: key -> text. Two runs that differ in any key are different.
        model: name -> tensor.
        optimizer: parameter -> slot -> value.
        method: state of the method, or None.
        rng: state of the generators of every process.
        average: name -> tensor of the running average; empty if there was none.
        examples: what is known of every training example; empty if nothing is noted.
    """

    position: Mapping[str, Any]
    fingerprint: Mapping[str, str]
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Mapping[str, Any]]
    method: Mapping[str, Any] | None
    rng: Sequence[Generators]
    average: Mapping[str, Tensor] = field(default_factory=dict)
    examples: Mapping[str, Tensor] = field(default_factory=dict)
    path: Path = field(default=Path())


def write(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method | None,
    *,
    position: Mapping[str, Any],
    fingerprint: Mapping[str, str],
    rng: Sequence[Generators],
    average: nn.Module | None = None,
    examples: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint; a crash at any moment leaves the old file or the new one.

    Raises:
        CheckpointError: the file cannot be written.
    """
    tensors = {f"model/{name}": tensor for name, tensor in _named_tensors(model).items()}
    scalars: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}{_SLOT}{slot}"] = value
            else:
                scalars.setdefault(name, {})[slot] = value
    state = None if method is None else method.state_dict()
    if state is not None:
        tensors |= {f"method/{name}": tensor for name, tensor in state["tensors"].items()}
    for number, (states, _) in enumerate(rng):
        tensors |= {f"rng/{number}/{name}": tensor for name, tensor in states.items()}
    if average is not None:
        tensors |= {f"average/{name}": tensor for name, tensor in _named_tensors(average).items()}
    tensors |= {f"examples/{name}": tensor for name, tensor in (examples or {}).items()}
    record = {
        "position": position,
        "fingerprint": dict(fingerprint),
        "optimizer": scalars,
        "method": None if state is None else {"meta": state["meta"]},
        "rng": [meta for _, meta in rng],
    }
    metadata = {"format": FORMAT, "record": json.dumps(record)}
    # A clone each: safetensors refuses tensors that share memory, as views of one store do.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as new:
            save_file(plain, new, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be written",
            str(error),
            "free some space or choose another directory",
        ) from error


def read(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: the file is broken or is not a checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                found = metadata.get("format", "a safetensors file of something else")
                raise _broken(path, f"it is {found!r}, and {FORMAT!r} is needed")
            record = json.loads(metadata["record"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        parts = _by_prefix(tensors)
        optimizer: dict[str, dict[str, Any]] = {name: dict(slots) for name, slots in record["optimizer"].items()}
        for key, tensor in parts["optimizer"].items():
            name, slot = key.rsplit(_SLOT, 1)
            optimizer.setdefault(name, {})[slot] = tensor
        method = record["method"]
        return Checkpoint(
            position=dict(record["position"]),
            fingerprint=dict(record["fingerprint"]),
            model=parts["model"],
            optimizer=optimizer,
            method=None if method is None else {"tensors": parts["method"], "meta": method["meta"]},
            rng=[(_under(parts["rng"], f"{number}/"), meta) for number, meta in enumerate(record["rng"])],
            average=parts["average"],
            examples=parts["examples"],
            path=path,
        )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise _broken(path, str(error).split("\n", 1)[0] or type(error).__name__) from error


def restore(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method | None,
    average: nn.Module | None = None,
) -> None:
    """Put a checkpoint's values in place: the method first, which brings everything to its size.

    Raises:
        CheckpointError: it is of another network, or of a run with another method.
    """
    if (method is None) != (checkpoint.method is None):
        had = "a method" if checkpoint.method is not None else "none"
        raise _other(checkpoint.path, f"it was written with {had} that changes the network, and this run differs")
    if method is not None:
        try:
            method.load_state_dict(checkpoint.method or {})
        except (KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise _other(checkpoint.path, f"the method cannot take its state back ({error!r})") from error
    _copy(checkpoint, checkpoint.model, model)
    if average is not None:
        _copy(checkpoint, checkpoint.average, average)
    parameters = dict(model.named_parameters())
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    optimizer.state.clear()
    for name, slots in checkpoint.optimizer.items():
        parameter = parameters.get(name)
        if parameter is None or id(parameter) not in trained:
            raise _other(checkpoint.path, f"the optimizer does not train {name!r}")
        for slot, value in slots.items():
            # Step counters are scalars on the CPU whatever the device; the rest lies with its parameter.
            if isinstance(value, Tensor) and value.dim() > 0:
                value = value.to(parameter.device)
            optimizer.state[parameter][slot] = value


def _copy(checkpoint: Checkpoint, values: Mapping[str, Tensor], model: nn.Module) -> None:
    present = _named_tensors(model)
    if present.keys() != values.keys():
        odd = sorted(present.keys() ^ values.keys())
        raise _other(checkpoint.path, f"{odd[0]!r} is in only one of the two networks")
    for name, tensor in present.items():
        saved = values[name]
        if saved.shape != tensor.shape or saved.dtype != tensor.dtype:
            shapes = f"{tuple(saved.shape)} {saved.dtype} in the file, {tuple(tensor.shape)} {tensor.dtype} here"
            raise _other(checkpoint.path, f"{name!r} is {shapes}")
    with torch.no_grad():
        for name, tensor in present.items():
            tensor.copy_(values[name])


def check_same_run(checkpoint: Checkpoint, fingerprint: Mapping[str, str]) -> None:
    """Refuse a checkpoint of another run, saying in what it differs.

    Raises:
        CheckpointError: any part of the fingerprint differs.
    """
    for key in sorted(fingerprint.keys() | checkpoint.fingerprint.keys()):
        theirs, ours = checkpoint.fingerprint.get(key, "nothing"), fingerprint.get(key, "nothing")
        if theirs != ours:
            raise _other(checkpoint.path, f"its {key} is {_difference(theirs, ours)}")


def _difference(theirs: str, ours: str) -> str:
    """`theirs, and here it is ours`; of two JSON objects, only the entries that differ."""
    try:
        old, new = json.loads(theirs), json.loads(ours)
        keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        theirs = ", ".join(f"{key}={old.get(key)}" for key in keys)
        ours = ", ".join(f"{key}={new.get(key)}" for key in keys)
    except (ValueError, AttributeError):
        pass
    return f"{theirs}, and here it is {ours}"


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each tied tensor once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _by_prefix(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    names = ("model", "average", "optimizer", "method", "examples", "rng")
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for key, tensor in tensors.items():
        part, name = key.split("/", 1)
        parts[part][name] = tensor
    return parts


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _broken(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint {path} cannot be read", why, "delete it to start anew")


def _other(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {path} belongs to another run", why, "delete it, or choose another directory"
    )
