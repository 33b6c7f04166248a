"""A table that another device measured: it is used by that device's name, and nothing is called measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halp_iee.cli.main import run as command_line
from halp_iee.latency.table import find

SHIPPED = "amd-epyc-ort1.31.1-t1-b1-fp32-resnet20"
ASKED = ["prune", "--model", "resnet20", "--latency-target", "0.5"]


@pytest.fixture
def edge(tmp_path: Path) -> Path:
    """The shipped table, as if a small board had measured it."""
    first, *points = find(SHIPPED).read_text().splitlines()
    header = json.loads(first)
    header["device"]["name"] = "Cortex-A76"
    path = tmp_path / "edge.jsonl"
    path.write_text("\n".join([json.dumps(header), *points]) + "\n")
    return path


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    code = command_line(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_network_is_pruned_for_a_device_that_only_its_table_knows(edge, tmp_path, capsys):
    where = ["--table", str(edge), "--gpu", "cortex-a76", "--out", str(tmp_path / "run")]
    code, out, err = run([*ASKED, *where], capsys)
    assert code == 0
    assert "Cortex-A76 is not attached" in err
    assert "PREDICTED" in err
    assert "NOT measured" in out
    assert "odelled" not in out + err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["device"] == "Cortex-A76"
    assert result["measured_ms"] is None
    assert result["source"] == "measured"  # of the table; what is predicted from it is not called measured
    assert result["predicted_ms"] <= 0.5 * result["dense_ms"] * 1.001
    page = (tmp_path / "run" / "report.html").read_text()
    assert "not measured" in page
    assert "Modelled, not measured" not in page


def test_the_name_must_be_that_of_the_table(edge, tmp_path, capsys):
    for where in (["--gpu", "cortex-a77"], []):
        code, out, err = run([*ASKED, "--table", str(edge), *where, "--out", str(tmp_path / "run")], capsys)
        assert code in (1, 2)
        assert out == ""
        assert len(err.strip().splitlines()) == 1
        assert not (tmp_path / "run" / "result.json").exists()
