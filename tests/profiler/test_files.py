"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from halp_profiler.files import whole


def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with whole(path) as partial:
            partial.write_text("ne")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_a_file_has_the_rights_that_any_file_of_the_user_has_whatever_writes_it(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with whole(tmp_path / "file") as partial:
        other = tmp_path / "private"
        other.touch(mode=0o600)
        os.replace(other, partial)  # as writers do that make a file of their own
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
