"""Weights of a whole network from a safetensors file."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from halp_iee.errors import ArtifactError


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a state dict into `model`, all of it or nothing.

    Names may carry one common prefix (`module.` of DistributedDataParallel, `_orig_mod.` of
    torch.compile). A checkpoint of this package's own training serves too, if its network is whole.

    Raises:
        ArtifactError: the file is missing or broken, or of another network; names the tensor.
    """
    path = Path(path)
    what = f"the weights {path} cannot be loaded"
    if not path.is_file():
        raise ArtifactError(what, "there is no such file", "check the path")
    try:
        found = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(
            what, f"it is no whole safetensors file ({str(error).splitlines()[0]})",
            "save it with safetensors.torch.save_file(model.state_dict(), path)",
        ) from error  # fmt: skip
    if any(name.startswith("rng/") for name in found):
        kept = "average/" if any(name.startswith("average/") for name in found) else "model/"
        found = {name.removeprefix(kept): t for name, t in found.items() if name.startswith(kept)}
    for prefix in ("module.", "_orig_mod."):
        if found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    wanted = model.state_dict()
    # Of tensors that are one under two names, safetensors files hold one.
    places: dict[int, list[str]] = {}
    for name, tensor in wanted.items():
        places.setdefault(tensor.data_ptr(), []).append(name)
    for names in places.values():
        stored = next((name for name in names if name in found), None)
        if stored is not None and wanted[stored].numel():
            found |= {name: found[stored] for name in names if name not in found}
    # Buffers that are not part of the state (positions, masks) are made by the network itself.
    extra = {name for name, _ in model.named_buffers()} - wanted.keys()
    missing, unknown = wanted.keys() - found.keys(), found.keys() - wanted.keys() - extra
    remedy = "give the weights of this very network, with as many classes and input channels"
    if missing or unknown:
        one = sorted(missing or unknown)[0]
        more = f" (and {len(missing or unknown) - 1} more)" if len(missing or unknown) > 1 else ""
        where = "is not in the file" if missing else "is not in the network"
        raise ArtifactError(what, f"{one!r} {where}{more}", remedy)
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            raise ArtifactError(
                what,
                f"{name!r} is {tuple(found[name].shape)} in the file and {tuple(tensor.shape)} here",
                remedy,
            )
    model.load_state_dict({name: found[name] for name in wanted})
