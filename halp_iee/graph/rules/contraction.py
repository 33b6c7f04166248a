"""Convolutions, matrix products, attention and embeddings: where channels are made and read."""

from __future__ import annotations

from halp_iee.graph.calls import Ref
from halp_iee.graph.labels import Axis, Label, Step
from halp_iee.graph.rules.base import Rule
from halp_iee.graph.rules.grouped import contract, grouped, tie_blocks


def convolution(step: Step) -> None:
    """Convolution in any number of dimensions, plain, grouped, depthwise or transposed.

    With one group, the weight's input axis is tied to the input's channels and its
    output axis makes the output's. With more, see `grouped`.
    """
    x, weight, bias = step.label(step["input"]), step.label(step["weight"]), step["bias"]
    groups, transposed = step["groups"], bool(step["transposed"])
    name = step.source(step["weight"])
    beside: Label = []
    for number, axis in enumerate(x[2:]):
        single = (
            step.shape(step["weight"])[2 + number] == 1 and len(step["stride"]) == len(step["padding"]) == len(x) - 2
        )
        if axis is not None and single and step["stride"][number] == 1 and step["padding"][number] == 0:
            beside.append(Axis(axis.atoms, axis.zero and bias is None))  # a kernel of one tap leaves it as it is
            continue
        step.freeze(axis, "a convolution slides over it")
        beside.append(None)
    for axis in weight[2:]:
        step.freeze(axis, "the taps of a convolution's kernel")
    if groups == 1:
        into, out = (weight[0], weight[1]) if transposed else (weight[1], weight[0])
        contract(step, x[1], into)
    else:
        out = grouped(step, x[1], weight, groups, transposed)
    if bias is not None:
        added = step.label(bias)[0]
        if out is not None:
            out = step.meet(out, added)
            if out is not None and added is not None:
                out = Axis(out.atoms, out.zero and added.zero)
        else:
            step.freeze(added, "the bias of a convolution of fixed size")
    if out is not None and name is not None:
        step.labels.produce(out.atoms, name)
    step.emit([x[0], out, *beside])


def matmul(step: Step) -> None:
    """mm, bmm, addmm, baddbmm, mv, dot: leading axes tied, inner ones contracted."""
    names = ("mat1", "mat2") if step["mat1"] is not None else ("batch1", "batch2")
    if step[names[0]] is None:
        names = ("self", "mat2") if step["mat2"] is not None else ("self", "vec")
    if step[names[1]] is None:
        names = ("self", "other") if step["other"] is not None else ("self", "tensor")
    left, right = step[names[0]], step[names[1]]
    label = product(step, left, right)
    added = step["self"] if names[0] in ("mat1", "batch1") else step["input"]
    if isinstance(added, Ref):
        label = _add(step, label, added)
    step.emit(label)


def linear(step: Step) -> None:
    """y = x W^T + b, where it was not taken apart."""
    x, weight = step.label(step["input"]), step.label(step["weight"])
    contract(step, x[-1], weight[1])
    _produce(step, step["weight"], weight[0])
    label = [*x[:-1], weight[0]]
    step.emit(_add(step, label, step["bias"]) if step["bias"] is not None else label)


def _produce(step: Step, ref: Ref, axis: Axis | None) -> None:
    name = step.source(ref)
    if axis is not None and name is not None:
        step.labels.produce(axis.atoms, name)


def product(step: Step, left: Ref, right: Ref) -> Label:
    """The label of a matrix product."""
    one, two = step.label(left), step.label(right)
    inner_one, inner_two = one[-1], two[-2] if len(two) > 1 else two[-1]
    contract(step, inner_one, inner_two)
    outer: Label = [one[-2]] if len(one) > 1 else []
    if left.id in step.labels.capture.tensors:  # a parameter on the left makes channels too
        for axis in one[-2:]:
            _produce(step, left, axis)
    if len(two) > 1:
        outer.append(two[-1])
        _produce(step, right, two[-1])
    batch: Label = []
    for first, second in zip(one[:-2], two[:-2], strict=False):
        met = step.meet(first, second) if first is not None or second is not None else None
        zero = met is not None and (met.zero or bool(second and second.zero))
        batch.append(None if met is None else Axis(met.atoms, zero))
    return batch + outer


def _add(step: Step, label: Label, added: Ref) -> Label:
    """Add a bias that broadcasts against the result."""
    other = step.label(added)
    shape = step.shape(added)
    result = list(label)
    for axis in range(-len(label), 0):
        current = result[axis]
        if len(shape) < -axis or shape[axis] == 1:
            result[axis] = None if current is None else Axis(current.atoms, False)
            # A bias over the last axis adds zeros to rows only where it is itself zero.
            continue
        met = step.meet(current, other[axis]) if current is not None or other[axis] is not None else None
        beside = other[axis]
        result[axis] = None if met is None else Axis(met.atoms, met.zero and beside is not None and beside.zero)
    return result


def attention(step: Step) -> None:
    """softmax(q k^T s) v over (batch, heads, tokens, size); fewer key heads than query heads are shared.

    Without an explicit s the operation scales by the size of the head. So whole heads go and that size stays; where
    there is one head only, or where that leaves nothing to prune, the masked network scales by the size that lives.
    """
    q, k, v = (step.label(step[name]) for name in ("query", "key", "value"))
    if step["scale"] is None:
        reason, size = "attention scales its scores by this size", q[-1]
        alone = len(q) < 4 or (len(q) == 4 and step.shape(step["query"])[1] == 1)
        if size is None or k[-1] is None:
            step.freeze([size, k[-1]], reason)
        elif alone or step.labels.choose((step.call.index, 0), size.atoms, 2) == 1:
            step.only_live({-1: size}, reason)
        else:
            step.freeze([size, k[-1]], reason)
    contract(step, q[-1], k[-1])
    step.freeze([q[-2], k[-2], v[-2]], "attention runs over it as tokens")
    batch: Label = []
    for axis in range(len(q) - 2):
        heads, shared = step.shape(step["query"])[axis], step.shape(step["key"])[axis]
        head, key, value = q[axis], k[axis], v[axis]
        if head is None and key is None and value is None:
            batch.append(None)
        elif heads != shared and head is not None and key is not None and value is not None:
            tied = tie_blocks(step, head.atoms, shared)
            step.tie(tied, key.atoms)
            step.tie(tied, value.atoms)
            batch.append(Axis(head.atoms, value.zero))
        elif heads != shared:
            step.freeze([head, key, value], "attention heads that share keys of fixed number")
            batch.append(None)
        else:
            met = step.meet(step.meet(head, key), value)
            batch.append(None if met is None else Axis(met.atoms, value is not None and value.zero))
    mask = step["attn_mask"] if isinstance(step["attn_mask"], Ref) else step["attn_bias"]
    if isinstance(mask, Ref):
        shape, label = step.shape(mask), step.label(mask)
        for axis in range(len(q) - 2):
            position = axis - len(q)
            if len(shape) >= -position and shape[position] > 1:
                met = step.meet(batch[axis], label[position]) if batch[axis] or label[position] else None
                batch[axis] = None if met is None or batch[axis] is None else batch[axis]
        step.freeze(label[-2:], "attention runs over it as tokens")
    step.emit([*batch, None, v[-1]])


def embedding(step: Step) -> None:
    """Rows of a table: its last axis becomes channels, its length stays."""
    weight = step.label(step["weight"])
    step.freeze(weight[0], "the rows of an embedding")
    _produce(step, step["weight"], weight[1])
    step.emit([*step.label(step["indices"]), weight[1]])


def outer(step: Step) -> None:
    """Outer product of vectors."""
    one, two = step.label(step["self"]), step.label(step["vec2"])
    step.emit([one[0], two[0]])


RULES: dict[str, Rule] = {
    "aten::convolution": Rule("conv", convolution),
    "aten::_convolution": Rule("conv", convolution),
    "aten::mkldnn_convolution": Rule("conv", convolution),
    **{
        f"aten::{name}": Rule("matmul", matmul)
        for name in ["mm", "bmm", "addmm", "baddbmm", "mv", "dot", "vdot", "matmul"]
    },
    "aten::linear": Rule("linear", linear),
    **{
        f"aten::{name}": Rule("attention", attention)
        for name in [
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_attention_math",
            "scaled_dot_product_attention",
            "_scaled_dot_product_fused_attention_overrideable",
        ]
    },
    "aten::embedding": Rule("embedding", embedding),
    "aten::outer": Rule("matmul", outer),
}
