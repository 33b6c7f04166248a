"""Which form of a sparse layer is fastest here: found by timing them, never by rule."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halp_iee.condensed.linear import CondensedLinear
from halp_iee.errors import UsageError


@dataclass(frozen=True)
class Choice:
    """What was measured.

    Attributes:
        form: the fastest: `dense`, `slimmed`, `condensed`, `csr` or `2:4`.
        layer: a module of that form; the layer itself if it is `dense`.
        ms: form -> median latency in ms.
    """

    form: str
    layer: nn.Module
    ms: dict[str, float]


class SlimmedLinear(nn.Module):
    """A linear layer whose rows without weights are not multiplied: they give their bias, [..., in] -> [..., out].

    Source: the "structured" form of SRigL's figure 4.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        live = weight.detach().any(1)
        self.register_buffer("live", live.nonzero().flatten())
        self.register_buffer("weight", weight.detach()[live].contiguous())
        self.register_buffer("bias", weight.new_zeros(len(weight)) if bias is None else bias.detach().clone())
        self.live: Tensor
        self.weight: Tensor
        self.bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias[self.live])
        out = self.bias.to(y.dtype).expand(*x.shape[:-1], -1).clone()
        out[..., self.live] = y
        return out


class CSRLinear(nn.Module):
    """A linear layer through torch's CSR product, [..., in] -> [..., out]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight.detach().to_sparse_csr()
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        # One sample as a vector: the matrix product takes twice as long for it.
        y = torch.mv(self.weight, flat[0])[None] if len(flat) == 1 else (self.weight @ flat.T).T
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], -1)


def forms(layer: nn.Linear) -> dict[str, nn.Module]:
    """Every form that the layer can take on its device, by name."""
    weight, bias = layer.weight, layer.bias
    found: dict[str, nn.Module] = {"dense": layer}
    if bool((weight == 0).all(1).any()) and bool(weight.any()):
        found["slimmed"] = SlimmedLinear(weight, bias)
    if weight.dtype == torch.float32:
        found["condensed"] = CondensedLinear(weight, bias)
        found["csr"] = CSRLinear(weight, bias)
    if _has_semi_structured(weight):
        from torch.sparse import to_sparse_semi_structured

        twin = nn.Linear(layer.in_features, layer.out_features, bias is not None, device=weight.device,
                         dtype=weight.dtype)  # fmt: skip
        twin.weight = nn.Parameter(to_sparse_semi_structured(weight.detach()), requires_grad=False)
        if bias is not None:
            twin.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        found["2:4"] = twin
    return found


def _has_semi_structured(weight: Tensor) -> bool:
    """Whether the device multiplies 2:4 and the weight is 2:4 and of a type and size that it takes."""
    if not weight.is_cuda or torch.cuda.get_device_capability(weight.device) < (8, 0):
        return False
    if weight.dtype not in (torch.float16, torch.bfloat16) or weight.shape[0] % 32 or weight.shape[1] % 64:
        return False
    return bool(((weight.reshape(-1, 4) != 0).sum(1) <= 2).all())


def fastest_here(layer: nn.Linear, batch: int, *, seconds: float = 0.2, tolerance: float = 1e-3) -> Choice:
    """Time every form of a sparse linear layer on its device and take the fastest.

    The forms are timed in turn, round by round, so that a machine that slows down slows all of them; with
    as many threads as torch has at the moment.

    Args:
        layer: its dead weights are zero.
        batch: samples at a time.
        seconds: that the timing takes, roughly.
        tolerance: largest difference from the dense layer's output over the largest output; a form that
            differs by more is not taken.

    Raises:
        UsageError: not a linear layer, or no batch.
    """
    if not isinstance(layer, nn.Linear) or batch < 1:
        raise UsageError(
            "there is nothing to choose",
            f"a {type(layer).__name__} and a batch of {batch} were given",
            "pass a linear layer and a batch of at least 1",
        )
    x = torch.randn(batch, layer.in_features, device=layer.weight.device, dtype=layer.weight.dtype)
    candidates = {}
    with torch.no_grad():
        expected = layer(x)
        scale = float(expected.abs().max()) or 1.0
        for name, form in forms(layer).items():
            try:
                if float((form(x) - expected).abs().max()) <= tolerance * scale:
                    candidates[name] = form
            except (RuntimeError, NotImplementedError):
                continue  # this build of torch lacks the form's operation
        ms = interleaved_ms({name: partial(form, x) for name, form in candidates.items()}, seconds, x.is_cuda)
    best = min(ms, key=lambda name: ms[name])
    return Choice(best, candidates[best], ms)


def interleaved_ms(calls: dict[str, Callable[[], object]], seconds: float, cuda: bool = False) -> dict[str, float]:
    """Name -> median time of a call in ms, over rounds in which every call has its turn.

    A turn lasts some milliseconds, and its first calls are not timed: they find the caches full of another's
    weights.
    """
    clock = time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in calls}
    repeats = {}
    for name, call in calls.items():
        call()
        since = clock()
        call()
        _wait(cuda)
        repeats[name] = max(2, min(200, int(4e-3 / max(1e-7, clock() - since))))
    end = clock() + seconds
    while clock() < end or len(next(iter(times.values()))) < 5:
        for name, call in calls.items():
            for _ in range(max(1, repeats[name] // 4)):
                call()
            _wait(cuda)
            since = clock()
            for _ in range(repeats[name]):
                call()
            _wait(cuda)
            times[name].append((clock() - since) / repeats[name])
    return {name: 1e3 * sorted(found)[len(found) // 2] for name, found in times.items()}


def _wait(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()
