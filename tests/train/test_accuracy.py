"""The default recipe does what its description says."""

from __future__ import annotations

import pytest
import torch

from halp_iee import models
from halp_iee.train import Recipe, fit, load


@pytest.mark.slow
def test_the_default_recipe_trains_a_resnet20_on_digits_to_985_in_1000():
    data = load("digits")
    torch.manual_seed(0)
    model = models.build("resnet20", data.num_classes, data.input_shape[0])
    assert fit(model, data, Recipe()).top1 >= 0.985
