"""From a graph and a table to the terms that a network's latency is the sum of: its kernels, and what lies between."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from halp_iee.graph.records import Width
from halp_iee.latency.cost import LayerCost
from halp_iee.latency.layers import Layer, Traced, is_alias, layers_of
from halp_iee.latency.layouts import Following, Made, Reader, Reordering, follows, made_by, read_by
from halp_iee.latency.table import LatencyTable
from halp_profiler.geometry import output_spatial
from halp_profiler.kernel import TWO_SIDED, Kernel

_CONV = Kernel("conv", (8, 8), (1, 1))


def terms_of(graph: Traced, table: LatencyTable) -> tuple[list[LayerCost], list[Kernel]]:
    """The terms, in execution order, and the kernels that the table lacks.

    Raises:
        TableError: the table lacks one of the network's convolutions or matrix products, or does not cover its width.
    """
    block = table.header.steps(_CONV).block_in
    blocked = any(k.layout_only for k in table.kernels) and block > 1
    costs: list[LayerCost] = []
    missing: list[Kernel] = []
    tensors = _Tensors(graph)
    for layer in layers_of(graph):
        kernel = layer.kernel
        before = tensors.made_of(layer.reads[0]) if layer.reads else Made()
        if kernel not in table and kernel.op not in TWO_SIDED:
            missing.append(kernel)
        else:
            cost = LayerCost(layer.name, layer.c_in, layer.c_out, kernel, table.surface(kernel))
            cost.ms(layer.c_in.full, layer.c_out.full)  # says now, not in the middle of a solve, what is not covered
            plain = replace(kernel, plain=True)
            if blocked and follows(kernel) and plain in table:
                both = Following(before, table.surface(kernel), table.surface(plain))
                cost = replace(cost, c_in=before.width or layer.c_out, c_out=layer.c_out, surface=both)
            costs.append(cost)
        if blocked:
            tensors.note(layer, made_by(kernel, table.header.steps(kernel), block, layer.c_in, layer.c_out, before))
            tensors.read(layer, read_by(kernel, table.header.steps(kernel), block, layer.c_out))
    return costs + (tensors.reorderings(table) if blocked else []), missing


class _Tensors:
    """Who makes and who reads every tensor of a network, and in which layout."""

    def __init__(self, graph: Traced) -> None:
        self._graph = graph
        self._alias: dict[int, int] = {}
        self._made: dict[int, tuple[Layer, Made]] = {}
        self._readers: dict[int, list[Reader]] = defaultdict(list)
        for op in graph.ops:
            if is_alias(op) and op.inputs:
                self._alias.update((out, self._alias.get(op.inputs[0], op.inputs[0])) for out in op.outputs)

    def made_of(self, tensor: int) -> Made:
        found = self._made.get(self._alias.get(tensor, tensor))
        return Made() if found is None else found[1]

    def note(self, layer: Layer, made: Made) -> None:
        if layer.makes is not None:
            self._made[layer.makes] = layer, made

    def read(self, layer: Layer, reader: Reader) -> None:
        for at, tensor in enumerate(layer.reads):
            # What is added or concatenated second is taken as the first is; a gate is small.
            mine = reader if at == 0 or reader.content else Reader(1, content=True)
            self._readers[self._alias.get(tensor, tensor)].append(mine)

    def reorderings(self, table: LatencyTable) -> list[LayerCost]:
        inside = {i for layer in layers_of(self._graph) for i in layer.ops}
        for op in self._graph.ops:
            if op.index not in inside and not is_alias(op):
                for tensor in op.inputs:
                    self._readers[self._alias.get(tensor, tensor)].append(Reader())
        costs = []
        for tensor, (layer, made) in self._made.items():
            spatial = output_spatial(layer.kernel)
            to_blocked, to_plain = Kernel("to_blocked", spatial), Kernel("to_plain", spatial)
            if to_plain not in table:
                continue
            readers = tuple(dict.fromkeys(self._readers[tensor])) or (Reader(),)
            # Fewer than 4 channels are never blocked, and what that would cost is not in the table.
            there = table.surface(to_blocked if to_blocked in table else to_plain)
            surface = Reordering(made, readers, there, table.surface(to_plain))
            maker: Width = made.width or layer.made
            costs.append(LayerCost(f"{layer.name}: layout", maker, layer.made, to_plain, surface))
        return costs
