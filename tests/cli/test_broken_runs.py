"""A run whose files were broken or edited: said in one line, never taken for a fault of the program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from halp_iee.cli.main import run
from halp_iee.errors import HalpError
from halp_iee.run.directory import RunDirectory, read_json
from halp_iee.run.reload import RESULT_KEYS, read_result
from halp_iee.run.stages import TimedNetworks

BROKEN = ["", "{", "null", "[]", "3", '"text"', '{"a": 1}', "[" * 100_000, "[1]", "[{}]"]


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_result_is_refused_by_name(tmp_path: Path, content: str) -> None:
    directory = RunDirectory(tmp_path)
    directory.result.write_text(content)
    with pytest.raises(HalpError, match=r"result\.json|the result of"):
        read_result(directory)


@pytest.mark.parametrize(
    "content", [*BROKEN, '[{"widths": {"a": 0}, "measured_ms": 1}]', '[{"widths": {"a": 4}, "measured_ms": -1}]']
)
def test_broken_calibration_is_refused_by_name(tmp_path: Path, content: str) -> None:
    directory = RunDirectory(tmp_path)
    directory.calibration.write_text(content)
    with pytest.raises(HalpError, match=r"calibration\.json"):
        read_json(directory.calibration, TimedNetworks)


@pytest.mark.parametrize("content", ["", "null", "[]", "3"])
def test_a_broken_configuration_is_refused_by_name(tmp_path: Path, content: str) -> None:
    directory = RunDirectory(tmp_path)
    directory.config.write_text(content)
    directory.result.write_text("{}")
    with pytest.raises(HalpError, match=r"config\.json"):
        directory.claim({"model": "x"})


@pytest.mark.parametrize("content", ["", "null", "[]", "3"])
def test_a_report_of_broken_evidence_is_refused_and_the_old_one_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: dict[str, Any], content: str
) -> None:
    directory = RunDirectory(tmp_path)
    directory.config.write_text("{}")
    directory.result.write_text(json.dumps(finished))
    directory.evidence.write_text(content)
    directory.report.write_text("the old page")
    assert run(["report", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "evidence.json" in error
    assert "fault of halp-iee" not in error
    assert directory.report.read_text() == "the old page"


@pytest.fixture
def finished() -> dict[str, Any]:
    """A result document as far as coming back to a run asks for it."""
    return dict.fromkeys(RESULT_KEYS, None)
