"""What `latency_tables/INDEX.md` says of the shipped tables is what the tables are."""

import re
from pathlib import Path

import pytest
import torch

from halp_iee import models, trace
from halp_iee.latency import LatencyModel, LatencyTable
from halp_iee.latency.profile import missing_from

FOLDER = Path(__file__).parents[2] / "latency_tables"
NETWORKS = {"ResNet-20": "resnet20", "ResNet-50": "resnet50", "MobileNetV2": "mobilenet_v2"}
WANTED = {("measured", "resnet20"), ("measured", "resnet50"), ("measured", "mobilenet_v2"), ("modelled", "resnet50")}


def listed():
    """The rows of the index by name: column -> text."""
    lines = [line for line in (FOLDER / "INDEX.md").read_text().splitlines() if line.startswith("|")]
    cells = [[c.strip().strip("`*") for c in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[2:]}


def network_of(row):
    name, size = re.fullmatch(r"(\S+), (\S+)", row["network"]).groups()
    return NETWORKS[name], tuple(int(n) for n in size.split("x"))


def test_every_table_is_listed_and_every_listed_one_is_there():
    assert sorted(listed()) == sorted(p.stem for p in FOLDER.glob("*.jsonl"))


def test_the_networks_that_are_promised_have_a_table():
    assert {(row["source"], network_of(row)[0]) for row in listed().values()} >= WANTED


@pytest.mark.parametrize("name", sorted(listed()))
def test_the_index_says_what_the_table_holds(name):
    row, table = listed()[name], LatencyTable.load(FOLDER / f"{name}.jsonl")
    said = (row["source"], int(row["batch"]), row["precision"], int(row["kernels"]), int(row["points"]))
    held = (table.source, table.batch, table.header.precision, len(table.kernels), len(table))
    assert said == held
    assert row["device"].startswith(table.device)


@pytest.mark.parametrize("name", sorted(listed()))
def test_a_shipped_table_predicts_its_network_at_any_width(name):
    table = LatencyTable.load(FOLDER / f"{name}.jsonl")
    model, size = network_of(listed()[name])
    channels, side = (size[0], size[1:]) if len(size) == 3 else (3, size)
    graph = trace(models.build(model), torch.randn(1, channels, *side))
    assert missing_from(table, graph) == ()
    cost = LatencyModel(graph, table)
    assert cost.unmodelled == ()
    smallest = cost.predict({g.name: 1 for g in graph.groups if g.prunable})
    assert 0 < smallest < cost.dense_ms
