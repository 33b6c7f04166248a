"""The event log survives crashes and is rewound to a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from halp_iee.errors import DataError
from halp_iee.train import EventLog
from halp_iee.train.events import read


def test_events_come_back_as_they_were_logged(tmp_path):
    with EventLog(tmp_path / "deep" / "log") as log:
        log.step = 3
        log.log("prune", loss=np.float32(0.5), widths={"a": np.int64(4)}, keep=torch.arange(2), gap=float("inf"))
        assert read(log.path) == [
            {"event": "prune", "step": 3, "loss": 0.5, "widths": {"a": 4}, "keep": [0, 1], "gap": None}
        ]  # at once, not only when the log is closed


def test_a_line_cut_off_at_any_byte_loses_that_line_alone(tmp_path):
    path = tmp_path / "log"
    with EventLog(path) as log:
        log.log("one")
        log.log("two")
    raw = path.read_bytes()
    first = raw.index(b"\n") + 1
    for cut in range(first, len(raw) - 1):
        path.write_bytes(raw[:cut])
        with EventLog(path) as log:
            log.log("three")
        assert [event["event"] for event in read(path)] == ["one", "three"] or cut == len(raw) - 1


def test_rewinding_drops_what_came_after_and_what_setting_up_repeated(tmp_path):
    path = tmp_path / "log"
    with EventLog(path) as log:
        log.log("start")
        for log.step in (1, 2, 3):
            log.log("tick")
    with EventLog(path) as log:
        log.log("start")
        log.rewind(2)
        log.step = 3
        log.log("tick")
    assert [(e["event"], e["step"]) for e in read(path)] == [
        ("start", 0),
        ("tick", 1),
        ("tick", 2),
        ("tick", 3),
    ]
    with EventLog(path) as log:
        log.log("start")
        log.rewind(None)
    assert [(e["event"], e["step"]) for e in read(path)] == [("start", 0)]


def test_a_file_that_is_no_log_is_refused_and_left_as_it_was(tmp_path):
    path = tmp_path / "log"
    for text in ("hello\nworld\n", '{"a": 1}\n{"b": 2}\n', "[1]\n[2]\n"):
        path.write_text(text)
        with pytest.raises(DataError, match="line 1"):
            EventLog(path)
        assert path.read_text() == text


def test_a_log_without_a_path_goes_nowhere(tmp_path):
    with EventLog(None) as log:
        log.log("one")
        log.rewind(3)
    assert log.step == 3
