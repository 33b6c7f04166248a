"""Writes docs/results/modelled_titanv.md: the modelled TITAN V against the figures published of a real one.

    python tools/modelled_titanv.py [--out docs/results/modelled_titanv.md]

Published: HALP (Shen et al., NeurIPS 2022), ResNet-50 on a TITAN V, batch 256, 224 x 224. Which widths the published
pruned networks have is not known, so every prunable group is narrowed by one factor, to multiples of 8, until the
network has about the published multiply-accumulates.
"""

from __future__ import annotations

import argparse
from math import prod
from pathlib import Path

import torch
import torchvision

from halp_iee.graph import trace
from halp_iee.latency import layers_of
from halp_iee.latency.layers import Layer, Traced
from halp_profiler.backends.modelled import Modelled
from halp_profiler.datasheet import DATASHEETS
from halp_profiler.files import whole
from halp_profiler.geometry import output_spatial

BATCH = 256
PUBLISHED = ((4.09, 1019), (3.00, 1213), (1.96, 1674), (1.11, 2610))
"""(GMACs, FPS at batch 256); the first is the dense network."""


def gmacs(layers: tuple[Layer, ...], widths: dict[str, int]) -> float:
    """Multiply-accumulates of the convolutions and linear layers, in 1e9 an image."""
    return sum(
        la.c_in(widths) * la.c_out(widths) * prod((*la.kernel.kernel_size, *output_spatial(la.kernel)))
        for la in layers if la.kernel.op in ("conv", "linear")
    ) / 1e9  # fmt: skip


def narrowed(graph: Traced, layers: tuple[Layer, ...], wanted: float | None) -> dict[str, int]:
    """Every prunable group narrowed by one factor until about ``wanted`` GMACs are left; None: the dense network."""
    sizes = {g.name: g.size for g in graph.groups if g.prunable}
    factors = [f / 200 for f in range(60, 201)] if wanted else [1.0]
    choices = [{name: max(8, round(size * f / 8) * 8) for name, size in sizes.items()} for f in factors]
    return min(choices, key=lambda widths: abs(gmacs(layers, widths) - (wanted or 0.0)))


def rows() -> list[tuple[float, float, float, float, float]]:
    """(GMACs published, GMACs here, FPS published, FPS modelled fused, FPS modelled eager) of every network."""
    graph = trace(torchvision.models.resnet50(weights=None).eval(), torch.randn(1, 3, 224, 224))
    layers = layers_of(graph)
    found = []
    for i, (published, fps) in enumerate(PUBLISHED):
        widths = narrowed(graph, layers, published if i else None)
        modelled = []
        for fused in (True, False):
            backend = Modelled(DATASHEETS["titanv"], batch=BATCH, fused=fused)
            ms = sum(backend.latency_ms(la.kernel, la.c_in(widths), la.c_out(widths)) for la in layers)
            modelled.append(BATCH * 1e3 / ms)
        found.append((published, gmacs(layers, widths), float(fps), *modelled))
    return found


def page(found: list[tuple[float, float, float, float, float]]) -> str:
    """The results as Markdown."""
    d = DATASHEETS["titanv"]

    def off(modelled: float, published: float) -> str:
        return f"{100 * (modelled / published - 1):+.0f}%"

    absolute = "\n".join(
        f"| {g:.2f} | {here:.2f} | {fps:.0f} | {fused:.0f} | {off(fused, fps)} | {eager:.0f} | {off(eager, fps)} |"
        for g, here, fps, fused, eager in found
    )
    _, _, dense, dense_fused, dense_eager = found[0]
    ratios = [(g, fps / dense, fused / dense_fused, eager / dense_eager) for g, _, fps, fused, eager in found[1:]]
    relative = "\n".join(
        f"| {g:.2f} | {p:.2f} | {f:.2f} | {100 * (f / p - 1):+.1f}% | {e:.2f} | {100 * (e / p - 1):+.1f}% |"
        for g, p, f, e in ratios
    )
    worst = max(abs(f / p - 1) for _, p, f, _ in ratios)
    return f"""# The modelled TITAN V against published figures

Written by `tools/modelled_titanv.py`; nothing on this page was measured here. The TITAN V is modelled from its
published specification: {d.multiprocessors} multiprocessors, {d.tflops["fp32"]} TFLOP/s in fp32, {d.memory_gb_s} GB/s
({d.source}). The shares of the peak that the model
assumes (`halp_profiler/backends/modelled.py`) are round figures, the same for every device, and were not adjusted to
the numbers below. One term was: the first form of the model rounded the reduction up to 8 and gave 1367 FPS for the
dense network; the 32-step prologue that replaced the rounding, chosen because it makes the table smoother, brought
that to 1286. The published figures were known at that time.

Published: HALP's ResNet-50 on a TITAN V, batch {BATCH}, 224x224; which runtime gave the figures is not known here. The
widths of the published pruned networks are not known either, so every prunable group is narrowed by one factor (to
multiples of 8) until the network has about the published multiply-accumulates. That makes the pruned rows a check
of the trend, not of the same networks.

| GMACs published | GMACs here | FPS published | FPS modelled, fused | residual | FPS modelled, eager | residual |
| --- | --- | --- | --- | --- | --- | --- |
{absolute}

*Fused* is what the tables hold: BatchNorm folded, activation and residual addition within the convolution, as
deployment runtimes do. *Eager* gives each of them its own pass over memory. The published figures lie between the two.

Relative to the dense network, which is what a latency target such as 0.3 asks for:

| GMACs published | speed-up published | modelled, fused | residual | modelled, eager | residual |
| --- | --- | --- | --- | --- | --- |
{relative}

So: the modelled table is of use for which structure is faster and by about what factor, within {100 * worst:.1f}% as
far as four points and one device can show. Its milliseconds are no measurement, and were off by
{100 * min(f / p - 1 for _, _, p, f, _ in found):.0f} to {100 * max(f / p - 1 for _, _, p, f, _ in found):.0f}% here.
`tests/latency/test_modelled_titanv.py` holds these figures.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results/modelled_titanv.md"))
    args = parser.parse_args()
    with whole(args.out) as file:
        file.write_text(page(rows()))
    print(args.out)


if __name__ == "__main__":
    main()
