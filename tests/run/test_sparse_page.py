"""The page that shows how masks change: every series that was logged, for one run and for several side by side."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from halp_iee.errors import ArtifactError
from halp_iee.run.sparse_page import dynamics, layers, write_sparse_page


def events(n: int, survival: float, kind: str = "event") -> list[dict]:
    start = {kind: "start", "step_of_method": 0, "iou": 1.0, "survival": None, "exploration_rate": 0.1,
             "sparsity_by_layer": {"a": 0.9, "b <script>": 0.5}}  # fmt: skip
    later = [
        {**start, kind: "update", "step_of_method": 10 * i, "iou": 0.5 + 0.01 * i, "survival": survival,
         "exploration_rate": 0.1 + 0.05 * i}
        for i in range(1, n + 1)
    ]  # fmt: skip
    return [start, *later, {kind: "epoch", "epoch": 1}]


def drawn(source: str) -> list[int]:
    """Points of every line."""
    return [len(points.split()) for points in re.findall(r'<polyline[^>]* points="([^"]*)"', source)]


@pytest.mark.parametrize("kind", ["event", "kind"])
def test_every_update_is_a_point(kind: str) -> None:
    body = dynamics({"iee": events(6, 0.8, kind)})
    assert drawn(body) == [6, 6, 7]  # IoU, survival; the exploration rate from the start on


def test_methods_lie_beside_one_another_in_colours_of_their_own(tmp_path: Path) -> None:
    runs = {"iee": events(5, 0.9), "rigl": events(4, 0.2), "set": events(3, 0.1)}
    path = write_sparse_page(runs, tmp_path / "p.html", title="a & b", about=[("network", "n")], document={"x": 1})
    page = path.read_text()
    assert len(drawn(page)) == 9
    assert len(set(re.findall(r"polyline[^>]*--c:var\(--(\w+)\)", page))) == 3
    assert "a &amp; b" in page
    assert "b &lt;script&gt;" in page
    assert "b <script>" not in page
    document = re.search(r'id="result">(.*?)</script>', page)
    assert document
    assert json.loads(document[1]) == {"x": 1}


def test_layers_that_one_method_keeps_dense_say_so() -> None:
    other = [{**e, "sparsity_by_layer": {"a": 0.25}} for e in events(1, 0.5)[:-1]]
    body = layers({"iee": events(2, 0.5)[:-1], "rigl": other})
    assert "25.00%" in body
    assert "dense" in body


def test_nothing_logged_draws_nothing_and_a_missing_folder_is_said(tmp_path: Path) -> None:
    assert dynamics({"static": []}) == ""
    with pytest.raises(ArtifactError, match="Cannot write"):
        write_sparse_page({}, tmp_path / "no" / "p.html", title="t", about=[], document={})
