"""Residual branches that can be removed whole: y = act(x + f(x)) becomes act(x).

A branch is offered where one module runs it, the addition, at most one activation and nothing else; where all that
the branch reads is that module's input; and where a trial shows that the network without the module computes what
the network with the branch's parameters zeroed does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from halp_iee.graph.records import Op

if TYPE_CHECKING:
    from halp_iee.graph.graph import ChannelGraph

_TWICE_IS_ONCE = ("relu", "relu6", "hardtanh")


@dataclass(frozen=True)
class Branch:
    """One branch that can be removed.

    Attributes:
        module: qualified name of the module that runs it and adds it to its own input.
        stays: what of the module stays when the branch is gone: the name of its activation within it, or "" when
            its input passes unchanged.
        groups: the groups whose units all lie in the branch; it is gone when nothing of any of them is kept.
    """

    module: str
    stays: str
    groups: tuple[str, ...]


def find_branches(graph: ChannelGraph) -> tuple[Branch, ...]:
    """The branches of a traced network that can be removed, in the order in which they run."""
    from halp_iee.slim.branches import proved

    found: list[Branch] = []
    names = [name for name, module in graph.model.named_modules() if name and any(module.children())]
    for name in sorted(names, key=lambda one: -one.count(".")):
        if any(other.module.startswith(name + ".") for other in found):
            continue  # the innermost module that runs the whole branch
        branch = _branch(graph, name)
        if branch is not None:
            found.append(branch)
    found = [branch for branch in found if branch.groups]
    first = {branch.module: min(op.index for op in _inside(graph, branch.module)) for branch in found}
    found.sort(key=lambda branch: first[branch.module])
    with torch.no_grad():
        if proved(graph, found):
            return tuple(found)
        return tuple(branch for branch in found if proved(graph, [branch]))


def _inside(graph: ChannelGraph, module: str) -> list[Op]:
    return [op for op in graph.ops if op.module == module or op.module.startswith(module + ".")]


def _branch(graph: ChannelGraph, module: str) -> Branch | None:
    inside = _inside(graph, module)
    indices = {op.index for op in inside}
    makes = {value: op for op in graph.ops for value in op.outputs}
    read = {value for op in inside for value in op.inputs if value not in makes or makes[value].index not in indices}
    if len(read) != 1:
        return None
    entry = read.pop()
    sums = [op for op in inside if op.kind == "add" and len(op.inputs) == 2 and op.inputs.count(entry) == 1]
    if len(sums) != 1 or sums[0].in_shape != sums[0].out_shape:
        return None
    tail = list(_users(inside, sums[0].outputs[0]))
    if len(tail) > 1 or any(op.kind != "activation" or len(op.inputs) != 1 for op in tail):
        return None
    if tail and list(_users(inside, tail[0].outputs[0])):
        return None
    last = {sums[0].index, *(op.index for op in tail)}
    body = [op for op in inside if op.index not in last]
    leaves = {value for op in graph.ops if op.index not in indices for value in op.inputs}
    if not body or any(value in leaves for op in (*body, *(sums if tail else [])) for value in op.outputs):
        return None
    stays = ""
    if tail:
        function, before = tail[0].attrs.get("function"), makes.get(entry)
        again = before is not None and before.kind == "activation" and before.attrs.get("function") == function
        if not (again and function in _TWICE_IS_ONCE):
            stays = tail[0].module[len(module) + 1 :]
            if not stays or any(True for _ in graph.model.get_submodule(tail[0].module).parameters()):
                return None
    groups = tuple(
        group.name
        for group in graph.groups
        if group.layers and all(layer.startswith(module + ".") for layer in group.layers) and group.prunable
    )
    return Branch(module, stays, groups)


def _users(ops: list[Op], value: int) -> Iterator[Op]:
    return (op for op in ops if value in op.inputs)
