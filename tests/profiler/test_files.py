"""Files are written whole or not at all."""

from __future__ import annotations

import os
import stat
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


def test_a_device_or_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with whole(pipe) as waiting:
            waiting.write_text("through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs a device that is always full")
def test_a_full_device_says_so_and_stays(tmp_path):
    with pytest.raises(OSError, match="No space left"), whole(Path("/dev/full")) as waiting:
        waiting.write_text("too much")
    assert Path("/dev/full").is_char_device()
