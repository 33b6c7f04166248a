"""Operations on single elements: activations, arithmetic, comparisons, factories."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from halp_iee.graph.calls import Ref
from halp_iee.graph.labels import MAX_FREE_AXIS, Axis, Label, Step
from halp_iee.graph.rules.base import Rule, all_zero, any_zero, broadcast, never_zero, with_zero


def keeps_zero(step: Step) -> None:
    """f(0) = 0: removed channels stay exact zeros."""
    step.emit_all(step.label(step.call.refs[0]))


def moves_zero(step: Step) -> None:
    """f(0) != 0, but finite: removed channels carry a constant that only masked weights may read."""
    step.emit_all(with_zero(step.label(step.call.refs[0]), False))


def breaks_zero(step: Step) -> None:
    """f(0) is not finite, and infinity times a masked weight is no longer zero."""
    ref = step.call.refs[0]
    if step.source(ref) is None:
        step.freeze(step.label(ref), "a removed channel would not be finite here")
    step.emit_all(with_zero(step.label(ref), False))


def clamp(step: Step) -> None:
    low = next((step[name] for name in ("min", "min_val") if step[name] is not None), None)
    high = next((step[name] for name in ("max", "max_val") if step[name] is not None), None)
    if isinstance(low, Ref) or isinstance(high, Ref):
        moved = broadcast(step, step.call.refs, never_zero)
        step.emit_all(moved)
        return
    inside = (low is None or low <= 0) and (high is None or high >= 0)
    step.emit_all(with_zero(step.label(step.call.refs[0]), inside))


def power(step: Step) -> None:
    exponent = step["exponent"]
    if isinstance(exponent, Ref) or isinstance(step["self"], (int, float)):
        step.emit_all(broadcast(step, step.call.refs, never_zero))
    elif exponent > 0:
        keeps_zero(step)
    elif exponent == 0:
        moves_zero(step)
    else:
        breaks_zero(step)


def _operands(step: Step) -> list[Ref]:
    return [step[name] for name in ("self", "other") if isinstance(step[name], Ref)]


def add(step: Step) -> None:
    scalar = next((step[n] for n in ("self", "other") if isinstance(step[n], (int, float))), 0)
    label = broadcast(step, _operands(step), all_zero)
    step.emit_all(with_zero(label, scalar == 0))


def extremum(step: Step) -> None:
    """The larger or smaller of two tensors; with a third value missing, a reduction has come here."""
    scalar = next((step[n] for n in ("self", "other") if isinstance(step[n], (int, float))), 0)
    step.emit_all(with_zero(broadcast(step, _operands(step), all_zero), scalar == 0))


def multiply(step: Step) -> None:
    scalar = step["other"] if not isinstance(step["other"], Ref) else 0
    finite = not isinstance(scalar, (int, float)) or math.isfinite(scalar)
    step.emit_all(with_zero(broadcast(step, _operands(step), any_zero), finite))


def divide(step: Step) -> None:
    numerator, divisor = step["self"], step["other"]
    if not isinstance(divisor, Ref):
        label = step.label(numerator)
        step.emit_all(with_zero(label, divisor != 0 and step["rounding_mode"] in (None, "trunc", "floor")))
        return
    for position, axis in enumerate(step.label(divisor)):
        if axis is not None and axis.zero:
            if divisor.id in step.labels.capture.tensors:
                step.labels.spared.add((divisor.id, position))  # what it divides is zero there
            else:
                step.freeze(axis, "a removed channel would divide by zero here")
    refs = [ref for ref in (numerator, divisor) if isinstance(ref, Ref)]
    step.emit_all(broadcast(step, refs, lambda zeros: len(zeros) == 2 and zeros[0] is True))


def compare(step: Step) -> None:
    """Comparisons and other functions of several tensors that say nothing about zeros."""
    step.emit_all(broadcast(step, step.call.refs, never_zero))


def where(step: Step) -> None:
    refs = [step[name] for name in ("condition", "self", "other") if isinstance(step[name], Ref)]
    step.emit_all(broadcast(step, refs, lambda zeros: len(zeros) == 3 and zeros[1] is True and zeros[2] is True))


def masked_fill(step: Step) -> None:
    value = step["value"]
    refs = [step["self"], step["mask"]]
    zero = isinstance(value, (int, float)) and value == 0
    step.emit_all(broadcast(step, refs, lambda zeros: zeros[0] is True and zero))


def lerp_like(step: Step) -> None:
    """addcmul, addcdiv, lerp: several tensors, treated as sums."""
    refs = [step[n] for n in ("self", "tensor1", "tensor2", "end", "weight") if isinstance(step[n], Ref)]
    step.emit_all(broadcast(step, refs, all_zero))


def prelu(step: Step) -> None:
    """max(0, x) + w min(0, x); one weight a channel, or one in all."""
    if step.call.name == "aten::prelu":
        label, weight = step.label(step["self"]), step.label(step["weight"])
        if len(label) > 1 and weight and weight[0] is not None:
            label[1] = step.meet(label[1], weight[0])
        step.emit_all(label)
    else:
        step.emit_all(broadcast(step, [step["self"], step["weight"]], lambda zeros: zeros[0] is True))


def copy_into(step: Step) -> None:
    """Writing one tensor into another, whole or through a view of it."""
    refs = [step["self"], step["src"]]
    step.emit_all(broadcast(step, refs, all_zero))


def fill(step: Step) -> None:
    value = step["value"]
    zero = step.call.name.endswith("zero") or (isinstance(value, (int, float)) and value == 0)
    step.emit_all(with_zero(step.label(step["self"]), bool(zero)))


def _free(step: Step, shape: tuple[int, ...], zero: bool) -> Label:
    """A tensor of one repeated value can have any size: its axes adopt whatever they meet."""
    return [Axis(step.labels.fresh(size), zero) if 1 < size <= MAX_FREE_AXIS else None for size in shape]


def factory(step: Step, zero: bool = False) -> None:
    value = step["fill_value"]
    step.emit(_free(step, step.out_shape(), zero or (isinstance(value, (int, float)) and value == 0)))


def like(step: Step, zero: bool = False) -> None:
    """zeros_like and its kin: the channels of the model tensor."""
    value = step["fill_value"]
    zero = zero or (isinstance(value, (int, float)) and value == 0)
    label = step.label(step["self"])
    step.emit([None if axis is None else Axis(axis.atoms, zero) for axis in label])


def fixed(step: Step) -> None:
    """A constant whose values differ by position, such as arange: its size is what it is."""


def _functions(kind: str, rule: Callable[[Step], None], names: str) -> dict[str, Rule]:
    return {f"aten::{name}": Rule(kind, rule) for name in names.split()}


ACTIVATIONS_KEEP = (
    "relu relu6 leaky_relu rrelu rrelu_with_noise elu selu celu gelu silu mish hardswish hardshrink softshrink "
    "tanh tanhshrink"
)
ACTIVATIONS_MOVE = "sigmoid hardsigmoid softplus log_sigmoid_forward log_sigmoid"
UNARY_KEEP = (
    "neg abs sqrt square sin sinh asin asinh atan atanh tan erf expm1 log1p floor ceil round trunc sign sgn frac "
    "positive clone detach alias contiguous _to_copy to lift_fresh lift_fresh_copy dropout native_dropout "
    "feature_dropout alpha_dropout nan_to_num deg2rad rad2deg conj _conj resolve_conj real imag _neg_view "
    "_fw_primal lift alias_copy detach_copy"
)
UNARY_MOVE = (
    "exp exp2 cos cosh acos logical_not bitwise_not isnan isinf isfinite signbit erfc bernoulli uniform exponential "
    "random angle sinc"
)
UNARY_BREAK = "log log2 log10 reciprocal rsqrt digamma lgamma logit erfinv"
COMPARISONS = (
    "eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor __and__ __or__ "
    "remainder fmod atan2 isclose heaviside copysign logaddexp logaddexp2 xlogy polar"
)

RULES: dict[str, Rule] = {
    **_functions("activation", keeps_zero, ACTIVATIONS_KEEP),
    **_functions("activation", moves_zero, ACTIVATIONS_MOVE),
    **_functions("elementwise", keeps_zero, UNARY_KEEP),
    **_functions("elementwise", moves_zero, UNARY_MOVE),
    **_functions("elementwise", breaks_zero, UNARY_BREAK),
    **_functions("elementwise", compare, COMPARISONS),
    **_functions("activation", clamp, "hardtanh"),
    **_functions("activation", prelu, "prelu _prelu_kernel"),
    **_functions("activation", moves_zero, "threshold"),
    **_functions("elementwise", clamp, "clamp clamp_min clamp_max clip"),
    **_functions("elementwise", power, "pow"),
    **_functions("add", add, "add sub rsub hypot"),
    **_functions("maximum", extremum, "maximum minimum fmax fmin"),
    **_functions("mul", multiply, "mul"),
    **_functions("div", divide, "div true_divide floor_divide"),
    **_functions("elementwise", where, "where"),
    **_functions("elementwise", masked_fill, "masked_fill"),
    **_functions("elementwise", lerp_like, "addcmul addcdiv lerp"),
    **_functions("elementwise", copy_into, "copy"),
    **_functions("elementwise", fill, "fill zero"),
    **_functions("factory", partial(factory, zero=True), "zeros new_zeros"),
    **_functions("factory", factory, "ones full new_ones new_full empty new_empty empty_strided new_empty_strided"),
    **_functions("factory", partial(like, zero=True), "zeros_like"),
    **_functions("factory", like, "ones_like full_like empty_like rand_like randn_like"),
    **_functions(
        "factory",
        fixed,
        "arange linspace logspace eye scalar_tensor rand randn randint randperm tensor normal",
    ),
}


def activation_attrs(args: dict[str, Any], name: str) -> dict[str, Any]:
    """What an activation is, for those who cost or export it."""
    plain = {key: value for key, value in args.items() if isinstance(value, (int, float, str)) and key != "self"}
    return {"function": name.split("::")[-1].lstrip("_"), **plain}
