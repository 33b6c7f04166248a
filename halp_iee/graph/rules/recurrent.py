"""Recurrent layers: one unit is one position of the hidden state, in all gates, layers and directions."""

from __future__ import annotations

import numpy as np

from halp_iee.graph.calls import Ref, refs_in
from halp_iee.graph.labels import Axis, Step
from halp_iee.graph.rules.base import Rule, tie_across
from halp_iee.graph.rules.contraction import contract

GATES = {"aten::lstm": 4, "aten::gru": 3, "aten::rnn_tanh": 1, "aten::rnn_relu": 1}


def recurrent(step: Step) -> None:
    """lstm, gru and rnn, over whole or packed sequences.

    A position whose rows are zero in every gate stays at zero if it starts there: tanh(0) = 0, and the state is
    a sum of products with it. All layers and directions share the number of hidden positions, so they share the units.
    With a projection (LSTM's ``proj_size``) the output's positions are another set of units.
    """
    packed = isinstance(step["batch_sizes"], Ref)
    x, params = step.label(step["input"]), [step.label(ref) for ref in step["params"]]
    refs = list(step["params"])
    gates, both = GATES[step.call.name], bool(step["bidirectional"])
    layers, directions = int(step["num_layers"]), 2 if both else 1
    each = len(refs) // (layers * directions)
    projected = each in (3, 5)
    step.freeze(x[:-1], "a recurrent layer runs over it")
    states = [step.label(ref) for ref in refs_in(step["hx"])]
    cell = tie_across(step, params[0][0], gates)
    out = params[each - 1][0] if projected else cell
    for number in range(layers * directions):
        mine, names = params[number * each : (number + 1) * each], refs[number * each : (number + 1) * each]
        for label, ref in zip(mine[: 4 if step["has_biases"] else 2], names, strict=False):
            made = tie_across(step, label[0], gates)
            cell = _joined(step, cell, made)
            name = step.source(ref)
            if made is not None and name is not None:
                step.labels.produce(made.atoms, name)
        if projected:
            contract(step, cell, mine[-1][1])
            out = _joined(step, out, mine[-1][0])
            name = step.source(names[-1])
            if out is not None and name is not None:
                step.labels.produce(out.atoms, name)
        contract(step, out, mine[1][1])
        if number < directions:
            contract(step, x[-1], mine[0][1])
        elif out is not None or mine[0][1] is not None:
            doubled = None if out is None else Axis(np.tile(out.atoms, directions), True)
            contract(step, doubled, mine[0][1])
    for number, state in enumerate(states):
        step.freeze(state[:-1], "a recurrent layer runs over it")
        axis, held = state[-1], cell if number else out
        if axis is not None or held is not None:
            _joined(step, held, axis)
            if axis is not None and held is not None and not axis.zero:
                step.freeze(held, "starts from a state that is not zero where channels were removed")
    wide = None if out is None else Axis(np.tile(out.atoms, directions), True)
    step.emit([None, wide] if packed else [None, None, wide], 0)
    step.emit([None, None, None if out is None else Axis(out.atoms, True)], 1)
    if len(step.call.outputs) > 2:
        step.emit([None, None, None if cell is None else Axis(cell.atoms, True)], 2)


def _joined(step: Step, one: Axis | None, two: Axis | None) -> Axis | None:
    return step.meet(one, two) if one is not None or two is not None else None


RULES: dict[str, Rule] = {name: Rule("recurrent", recurrent) for name in GATES}
