"""The report's table of what the training cost: what was counted, and nothing where nothing was."""

from __future__ import annotations

from typing import Any

import pytest

from halp_iee.report.training import cost

BILL = {
    "stages": {"estimate": {"steps": 30, "flops": 1e9}, "explore": {"steps": 30, "flops": 3e9}},
    "seconds": {"importance": 2.0, "explore": 6.5}, "overhead_seconds": {"solver": 0.4, "<script>": 1.0},
    "flops_ratio_by_formula": 0.3,
}  # fmt: skip


def test_every_stage_has_its_share_and_its_seconds() -> None:
    page = cost({"result": {"train_cost": BILL, "train_flops_ratio": 0.25}})
    for word in ("Importance Estimation", "25.0%", "75.0%", "0.250", "0.300", "solver", "&lt;script&gt;"):
        assert word in page, word
    assert "<script>" not in page


@pytest.mark.parametrize(
    "broken",
    [
        None,
        3,
        [],
        {"stages": None},
        {"stages": {"x": None}},
        {"stages": {"x": {"flops": "many", "steps": None}}, "seconds": 1},
        {"stages": {"train": {"flops": 0.0}}, "overhead_seconds": [1]},
    ],
)
def test_a_bill_that_is_no_bill_breaks_nothing(broken: Any) -> None:
    assert isinstance(cost({"result": {"train_cost": broken}}), str)
    assert cost({}) == ""
