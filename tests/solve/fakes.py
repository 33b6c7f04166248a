"""Small cost models with any shape of network and any table, and the truth by enumeration."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from halp_iee.graph.records import Width


@dataclass(frozen=True, eq=False)
class TableLayer:
    """A layer whose latency is looked up in a full table over (c_in, c_out)."""

    name: str
    c_in: Width
    c_out: Width
    table: np.ndarray

    def ms(self, c_in, c_out):
        return self.table[c_in, c_out]


@dataclass(frozen=True, eq=False)
class TableCost:
    layers: tuple
    fixed_ms: float
    sizes: dict

    def predict(self, widths):
        return self.fixed_ms + sum(
            float(layer.ms(np.array([layer.c_in(widths)]), np.array([layer.c_out(widths)]))[0]) for layer in self.layers
        )

    @property
    def dense_ms(self):
        return self.predict(self.sizes)


def make_table(rng, rows, columns, kind):
    """Latencies for 0..rows by 0..columns channels: smooth, a staircase, or with slower narrow widths."""
    i, j = np.arange(rows + 1)[:, None], np.arange(columns + 1)[None, :]
    step = int(rng.integers(2, 4))
    if kind == "smooth":
        table = (i + 0.3) * (j + 0.2)
    elif kind == "staircase":
        table = np.ceil(i / step) * np.ceil(j / step) + 0.1
    else:
        table = np.ceil(i / step) * np.ceil(j / step) + 0.1
        table = table * rng.uniform(0.7, 1.4, table.shape)
    return table * rng.uniform(0.02, 1.0)


def random_cost(rng, most_groups=4, most_units=6):
    """Chains, triangles, depthwise layers, concatenations (also nested), flattenings, side by side."""
    count = int(rng.integers(2, most_groups + 1))
    sizes = {f"g{i}": int(rng.integers(1, most_units + 1)) for i in range(count)}
    names = list(sizes)

    def width(*chosen, per=1, fixed=0):
        return Width(tuple((name, sizes[name], per) for name in chosen), fixed)

    def pick(number):
        return [names[i] for i in rng.permutation(count)[:number]]

    layers = []

    def add(c_in, c_out):
        kind = ("smooth", "staircase", "ragged")[int(rng.integers(3))]
        table = make_table(rng, c_in.full, c_out.full, kind)
        layers.append(TableLayer(f"l{len(layers)}", c_in, c_out, table))

    add(width(fixed=3), width(names[0]))
    for left, right in itertools.pairwise(names):
        add(width(left), width(right))
    for _ in range(int(rng.integers(1, 6))):
        shape = int(rng.integers(7))
        if shape == 0:
            add(width(*pick(1)), width(*pick(1)))
        elif shape == 1:
            only = pick(1)
            add(width(*only, per=2), width(*only))
        elif shape == 2:
            add(width(*pick(2)), width(*pick(1), fixed=1))
        elif shape == 3:
            add(width(*pick(min(3, count)), fixed=2), width(*pick(1)))
        elif shape == 4:
            add(width(*pick(1), per=4), width(fixed=5))
        elif shape == 5:
            add(width(*names), width(*pick(2)))
        else:
            mixed = pick(2)
            terms = tuple((name, sizes[name], per) for name, per in zip(mixed, (1, 3), strict=True))
            add(Width(terms), width(*pick(1)))
    return TableCost(tuple(layers), float(rng.uniform(0.0, 0.5)), sizes)


def random_importance(rng, sizes):
    scores = {name: rng.gamma(0.5, 1.0, size) for name, size in sizes.items()}
    if rng.random() < 0.3:
        scores = {name: np.round(score, 1) for name, score in scores.items()}  # ties and zeros
    return scores


def every_choice(cost, importance, allowed=None, standing=None):
    """(widths, value, latency) of every combination: the best units of each group, by enumeration."""
    names = list(importance)
    allowed = allowed or {name: range(cost.sizes[name]) for name in names}
    standing = standing or {name: [] for name in names}
    prefixes = {}
    for name in names:
        rest = sorted((u for u in allowed[name] if u not in set(standing[name])), key=lambda u: -importance[name][u])
        units = [*standing[name], *rest]
        low = max(1, len(standing[name]))
        prefixes[name] = [(k, sum(importance[name][u] for u in units[:k])) for k in range(low, len(units) + 1)]
    for combination in itertools.product(*(prefixes[name] for name in names)):
        widths = {name: k for name, (k, _) in zip(names, combination, strict=True)}
        yield widths, sum(value for _, value in combination), cost.predict(widths)
