"""What the page shows of the device: steps where the device has them, curves only as far as the table goes."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halp_iee.errors import TableError
from halp_iee.report.collect import group_steps, staircases


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer whose latency has steps of ``block`` output channels; its input is another group's, or fixed."""

    name: str
    into: str | int
    out: str | int
    block: int
    least: int = 1
    kernel: str = "a convolution"

    def c_in(self, widths: Any) -> int:
        return widths[self.into] if isinstance(self.into, str) else self.into

    def c_out(self, widths: Any) -> int:
        return widths[self.out] if isinstance(self.out, str) else self.out

    def ms(self, c_in: Any, c_out: Any) -> Any:
        if np.min(c_out) < self.least:
            raise TableError("x", "y", "z")
        return 0.001 * np.asarray(c_in) * -(-np.asarray(c_out) // self.block)


def model_of(sizes: dict[str, int], layers: list[Layer], frozen: tuple[str, ...] = ()) -> Any:
    groups = [SimpleNamespace(name=name, size=size, prunable=name not in frozen) for name, size in sizes.items()]
    return SimpleNamespace(graph=SimpleNamespace(groups=groups, full_widths=dict(sizes)), layers=layers)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([8, 16, 32]), st.integers(2, 12), st.integers(1, 64))
def test_steps_are_the_devices_and_stand_just_under_the_rise(block: int, blocks: int, chosen_in: int) -> None:
    size = block * blocks
    model = model_of({"a": 64, "b": size}, [Layer("l", "a", "b", block)])
    found = group_steps(model, {"a": chosen_in, "b": size // 2})
    assert found["b"] == list(range(block, size, block))
    assert "a" not in found  # a straight line has no steps


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 2000), st.integers(1, 2000))
def test_curves_hold_the_dense_and_the_chosen_width_and_stay_small(size: int, chosen: int) -> None:
    chosen = min(size, chosen)
    model = model_of({"a": 32, "b": size}, [Layer("l", "a", "b", 16)])
    found = staircases(model, {"a": 8, "b": chosen})
    if size <= 16:
        assert found == []  # one step throughout: nothing to show
        return
    (row,) = found
    assert row["dense"] == row["widths"][-1] == size
    assert row["chosen"] == chosen
    assert chosen in row["widths"]
    assert row["c_in"] == 8
    assert len(row["widths"]) == len(row["ms"]) <= 600
    assert row["ms"] == pytest.approx([0.008 * -(-w // 16) for w in row["widths"]])


def test_of_layers_that_look_the_same_one_is_shown() -> None:
    alike = [Layer(f"l{i}", "a", "b", 16) for i in range(5)]
    others = [Layer("narrow", 4, "a", 16), Layer("other", "a", "b", 16, kernel="another")]
    found = staircases(model_of({"a": 64, "b": 128}, [*alike, *others]), {"a": 20, "b": 30})
    assert [row["name"] for row in found] == ["l0", "other", "narrow"]


def test_what_the_table_does_not_know_what_is_frozen_and_what_costs_nothing_is_left_out() -> None:
    layers = [
        Layer("unknown", "a", "b", 16, least=5), Layer("head", "b", 1000, 16), Layer("known", 3, "a", 16),
        Layer("frozen", "a", "c", 16),
    ]  # fmt: skip
    model = model_of({"a": 64, "b": 64, "c": 64}, layers, frozen=("c",))
    widths = {"a": 20, "b": 30, "c": 64}
    assert [row["name"] for row in staircases(model, widths)] == ["known"]
    assert "c" not in group_steps(model, widths)
    assert staircases(model_of({}, [Layer("l", 3, 4, 8)]), {}) == []


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([200, 480, 960, 2000]))
def test_of_very_many_steps_the_narrow_widths_keep_theirs(size: int) -> None:
    """Steps that grow with the width, as of depthwise layers off their blocks: the highest alone would all be wide."""

    class Teeth(Layer):
        def ms(self, c_in: Any, c_out: Any) -> Any:
            return np.asarray(c_in) * 0.0 + np.where(np.asarray(c_out) % 8, 10.0, 1.0) * np.asarray(c_out)

    found = group_steps(model_of({"b": size}, [Teeth("l", 3, "b", 8)]), {"b": size // 2})["b"]
    assert len(found) <= 24
    assert all(step % 8 == 0 for step in found)
    assert sum(step <= size // 2 for step in found) >= len(found) // 3
