"""The picture of a channel graph: everything is in it, nothing in it can run."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

from halp_iee.errors import ArtifactError
from halp_iee.graph import trace
from halp_iee.report import graph_picture
from tests.graph.networks import NETWORKS, build

every_network = pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)

VOID = {"meta", "line", "circle", "rect", "br"}


class Checker(HTMLParser):
    """Notes the text, and that every element that begins also ends."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Checker:
    checker = Checker()
    checker.feed(page.replace("<!doctype html>", ""))
    assert not checker.open
    return checker


@every_network
def test_every_group_is_in_the_picture_with_its_reason(kind: type[nn.Module]) -> None:
    graph = trace(*build(kind))
    text = " ".join(read(graph_picture.render(graph, kind.__name__)).text)
    for group in graph.groups:
        assert group.name in text
        assert group.reason is None or group.reason in text


@every_network
def test_bands_that_live_at_the_same_time_are_side_by_side(kind: type[nn.Module]) -> None:
    graph = trace(*build(kind))
    bands = graph_picture.bands_of(graph, graph_picture.rows_of(graph))
    for i, one in enumerate(bands):
        for two in bands[:i]:
            assert one.lane != two.lane or one.first > two.last or two.first > one.last


def test_names_that_hold_markup_stay_text() -> None:
    model = nn.Sequential()
    model.add_module("<script>alert(1)</script>", nn.Conv2d(3, 4, 1))
    model.add_module("b", nn.Conv2d(4, 2, 1))
    checker = read(graph_picture.render(trace(model, torch.randn(1, 3, 4, 4)), "<img src=x onerror=1>"))
    assert checker.scripts == 1
    assert "<script>alert(1)</script>" in " ".join(checker.text)


def test_the_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    graph = trace(nn.Conv2d(3, 4, 1), torch.randn(1, 3, 4, 4))
    assert graph_picture.write(graph, tmp_path / "g.html").read_text().startswith("<!doctype html>")
    with pytest.raises(ArtifactError, match="picture"):
        graph_picture.write(graph, tmp_path / "nowhere" / "g.html")
    assert [file.name for file in tmp_path.iterdir()] == ["g.html"]
