"""A recipe is checked when it is made, and its learning rate goes up and then down."""

from __future__ import annotations

from itertools import pairwise

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halp_iee.errors import UsageError
from halp_iee.train import Recipe


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"epoch": 3}, "no option 'epoch'.*epochs"),
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": "many"}, "epochs='many'"),
        ({"lr": -1}, "lr=-1"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"optimizer": "lion"}, "optimizer='lion'"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"momentum": 0}, "nesterov"),
        ({"epochs": 3, "warmup_epochs": 3}, "warm"),
        ({"lr": 0, "epochs": 0}, "and 1 more"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(options, word):
    for make in (lambda: Recipe(**options), lambda: Recipe.of(options), lambda: Recipe().replace(**options)):
        with pytest.raises(UsageError, match=word) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_a_recipe_cannot_be_changed():
    with pytest.raises(pydantic.ValidationError):
        Recipe().lr = 3.0


def test_replace_gives_a_copy_that_differs_in_what_was_changed():
    assert Recipe(seed=3).replace(epochs=7) == Recipe(seed=3, epochs=7)


@given(epochs=st.integers(1, 30), warmup=st.floats(0, 29), steps=st.integers(1, 50), lr=st.floats(1e-5, 10))
def test_the_learning_rate_rises_to_its_peak_then_falls(epochs, warmup, steps, lr):
    if epochs > 1 and warmup >= epochs:
        return
    recipe = Recipe(epochs=epochs, warmup_epochs=warmup, lr=lr)
    rates = [recipe.lr_at(step, steps) for step in range(epochs * steps)]
    peak = rates.index(max(rates))
    assert all(0 <= rate <= lr * (1 + 1e-9) for rate in rates)
    assert all(a <= b for a, b in pairwise(rates[: peak + 1]))
    assert all(a >= b for a, b in pairwise(rates[peak:]))
