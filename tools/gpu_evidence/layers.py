"""Sparse linear layers: constant fan-in in Triton against CSR and dense, and 2:4 in the tensor cores against dense."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gpu_evidence.part import Part

CONDENSED = ((3072, 768), (768, 3072))
SEMI = ((3072, 768), (768, 3072), (4096, 4096))


def layers(part: Part) -> None:
    """Every form of each layer, timed in turn; a form whose output is not the dense layer's is left out."""
    from halp_iee.condensed.choose import forms, interleaved_ms

    seconds = 0.02 if part.tiny else 0.4
    for columns, rows in CONDENSED[:1] if part.tiny else CONDENSED:
        for sparsity in (0.9,) if part.tiny else (0.9, 0.95):
            for batch in (1, 16) if part.tiny else (1, 16, 256, 2048):
                weight = constant_fan_in(columns, rows, sparsity)
                _row(part, weight, batch, torch.float32, {"kind": "constant fan-in", "sparsity": sparsity}, seconds,
                     forms, interleaved_ms)  # fmt: skip
    for columns, rows in SEMI[:1] if part.tiny else SEMI:
        for batch in (16,) if part.tiny else (64, 512, 4096):
            weight = two_of_four(columns, rows)
            dtype = torch.float16 if part.cuda else torch.float32
            _row(part, weight, batch, dtype, {"kind": "2:4", "sparsity": 0.5}, seconds, forms, interleaved_ms)


def _row(part, weight, batch, dtype, about, seconds, forms, interleaved_ms) -> None:  # type: ignore[no-untyped-def]
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.requires_grad_(False).to(device=part.where, dtype=dtype)
    x = torch.randn(batch, columns).to(device=part.where, dtype=dtype)
    tolerance = 1e-3 if dtype == torch.float32 else 2e-2
    calls: dict[str, Callable[[], object]] = {}
    errors: dict[str, float] = {}
    left_out: dict[str, str] = {}
    with torch.no_grad():  # inference mode forbids what making a 2:4 tensor does
        expected = layer(x)
        scale = float(expected.abs().max())
        try:
            found = forms(layer)
        except Exception as problem:
            found, left_out["all but dense"] = {"dense": layer}, _first(problem)
        for name, form in found.items():
            try:
                error = float((form(x) - expected).abs().max()) / scale
            except Exception as problem:  # a compiler or an operation that is missing: one line, and the others go on
                left_out[name] = _first(problem)
                continue
            errors[name] = error
            if error <= tolerance:
                calls[name] = lambda form=form: form(x)
        ms = interleaved_ms(calls, seconds, part.cuda)
    part.row(
        layer=f"{columns} -> {rows}", **about, batch=batch, dtype=str(dtype).removeprefix("torch."), ms=ms,
        over_dense={name: ms["dense"] / value for name, value in ms.items() if name != "dense"}, error=errors,
        left_out=left_out,
    )  # fmt: skip


def _first(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:160]


def constant_fan_in(columns: int, rows: int, sparsity: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    kept = max(1, int(columns * (1 - sparsity)))
    place = torch.rand(rows, columns, generator=generator).topk(kept, dim=1).indices
    return torch.zeros(rows, columns).scatter_(1, place, torch.randn(rows, kept, generator=generator))


def two_of_four(columns: int, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    kept = weight.abs().reshape(-1, 4).topk(2, dim=1).indices
    mask = torch.zeros(rows * columns // 4, 4).scatter_(1, kept, 1.0)
    return weight * mask.reshape(rows, columns)
