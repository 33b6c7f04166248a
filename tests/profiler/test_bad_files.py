"""Broken, hostile and foreign tables, full disks, closed folders: one clear line, and what was there stays."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import pytest

from halp_profiler import sweep
from halp_profiler import table as tables
from halp_profiler.errors import TableError
from halp_profiler.kernel import KernelRange
from tests.profiler.fakes import CONV, FakeBackend, header, point

HEADER = json.dumps(header().to_json())
POINT = json.dumps(point(CONV, 8, 8, 1.0).to_json())


def changed(text, **values):
    return json.dumps({**json.loads(text), **values})


HOSTILE = {
    "empty": "",
    "blank lines": "\n\n\n",
    "no header": f"{POINT}\n",
    "text": "hello\n",
    "binary": "\x00\x01\x02\n",
    "deep nesting": HEADER + "\n" + "[" * 60_000 + "\n",
    "deep header": HEADER[:-1] + ', "x": ' + '{"a":' * 9000 + "1" + "}" * 9000 + "}\n",
    "endless digits": f"{HEADER}\n" + POINT.replace("1.0", "9" * 5000) + "\n",
    "huge latency": f"{HEADER}\n" + changed(POINT, median_ms=1e300) + "\n",
    "infinite latency": f"{HEADER}\n" + POINT.replace("1.0", "1e999") + "\n",
    "NaN": f"{HEADER}\n" + POINT.replace("1.0", "NaN") + "\n",
    "negative": f"{HEADER}\n" + changed(POINT, median_ms=-1.0) + "\n",
    "text for a number": f"{HEADER}\n" + changed(POINT, median_ms="1.0") + "\n",
    "true for a number": f"{HEADER}\n" + changed(POINT, c_in=True) + "\n",
    "no channels": f"{HEADER}\n" + changed(POINT, c_in=0) + "\n",
    "too many channels": f"{HEADER}\n" + changed(POINT, c_out=10**9) + "\n",
    "list for a point": f"{HEADER}\n[1,2]\n",
    "unknown operation": f"{HEADER}\n" + changed(POINT, op="rm -rf") + "\n",
    "flags of another kind": f"{HEADER}\n" + changed(POINT, flags=[1]) + "\n",
    "terminal codes in a flag": f"{HEADER}\n" + changed(POINT, flags=["\x1b[2J"]) + "\n",
    "terminal codes in a name": changed(HEADER, device={"name": "\x1b]0;x\x07"}) + "\n",
    "another schema": changed(HEADER, schema=99) + "\n",
    "schema of another kind": changed(HEADER, schema=[1]) + "\n",
    "batch 0": changed(HEADER, batch=0) + "\n",
    "source between the two": changed(HEADER, source="estimated") + "\n",
    "a device that is no object": changed(HEADER, device="cpu") + "\n",
    "a second device behind the first": HEADER + "\n" + changed(HEADER, batch=7) + "\n",
    "a long line": f"{HEADER}\n" + " " * 100_000 + "\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_table_is_one_line_and_stays_as_it_was(name, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(HOSTILE[name])
    with pytest.raises(TableError) as caught:
        tables.read(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700
    if HOSTILE[name].strip():
        with pytest.raises(TableError):
            sweep.run(FakeBackend(), [KernelRange(CONV, (1, 8), (1, 8))], path)
        assert path.read_text() == HOSTILE[name]


@pytest.mark.parametrize(
    "other",
    [
        {"device": {"name": "Other CPU", "threads": 1}}, {"device": {"name": "Test CPU", "threads": 2}}, {"batch": 2},
        {"precision": "fp16"}, {"layout": "nhwc"}, {"backend": "torch"}, {"backend_version": "2"},
        {"source": "modelled"},
    ],
)  # fmt: skip
def test_a_table_of_another_device_or_setting_is_left_alone(other, tmp_path):
    path = tmp_path / "t.jsonl"
    tables.create_or_check(path, header(**other))
    tables.append(path, [point(CONV, 8, 8, 1.0)])
    before = path.read_bytes()
    with pytest.raises(TableError, match="another device or setting") as caught:
        sweep.run(FakeBackend(), [KernelRange(CONV, (1, 8), (1, 8))], path)
    assert next(iter(other)).replace("_", " ") in str(caught.value) or "threads" in str(caught.value)
    assert path.read_bytes() == before
    mine = tmp_path / "mine.jsonl"
    tables.create_or_check(mine, header())
    with pytest.raises(TableError, match="cannot be merged"):
        tables.merge([mine, path], tmp_path / "both.jsonl")
    assert not (tmp_path / "both.jsonl").exists()


def test_an_l2_state_makes_another_table():
    assert header(how={"l2": "cold"}).difference(header(how={"l2": "warm"})) is not None
    assert header().difference(header(how={"steps": {}})) is None


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_table_cut_off_anywhere_keeps_its_whole_lines(cut, tmp_path):
    path = tmp_path / "t.jsonl"
    tables.create_or_check(path, header())
    tables.append(path, [point(CONV, 8, c, 1.0) for c in (8, 16, 24)])
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    assert len(tables.read(path).points) == 2
    tables.append(path, [point(CONV, 8, 32, 1.0)])
    assert [p.c_out for p in tables.read(path).points] == [8, 16, 32]


def test_a_line_of_a_gigabyte_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "t.jsonl"
    with path.open("wb") as file:
        file.write(HEADER.encode() + b"\n")
        file.truncate(400 << 20)  # a sparse file: one endless line of zeros
    code = (
        "import resource, sys\nfrom halp_profiler import table\nfrom halp_profiler.errors import TableError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"try: table.read({str(path)!r})\nexcept TableError as e: print(e)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert "longer than 64 KB" in out[0]
    assert int(out[1]) < 20_000  # KB
    with path.open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(TableError, match="larger than"):
        tables.read(path)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path, tmp_path / "pipe", "/dev/zero", tmp_path / "absent"):
        with pytest.raises(TableError):
            tables.read(odd)


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from halp_profiler import sweep
from halp_profiler.errors import TableError
from halp_profiler.kernel import KernelRange
from tests.profiler.fakes import CONV, FakeBackend
try:
    sweep.run(FakeBackend(), [KernelRange(CONV, (1, 64), (1, 64))], {path!r})
except TableError as e:
    print(e)
    sys.exit(e.exit_code)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="the system limits no files")
@pytest.mark.parametrize("limit", [100, 2000, 2003, 2500])
def test_a_full_disk_keeps_every_whole_line(limit, tmp_path):
    path = tmp_path / "t.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FULL.format(limit=limit, path=str(path))],
        capture_output=True,
        text=True,
        cwd=os.getcwd(),
    )
    assert done.returncode == 1, done.stderr
    assert "cannot be written" in done.stdout
    assert len(done.stdout.strip().splitlines()) == 1
    if limit == 100:
        assert not path.exists()  # not even the header fitted
        return
    kept = tables.read(path)
    assert kept.points
    assert path.read_bytes().endswith(b"\n")
    result = sweep.run(FakeBackend(), [KernelRange(CONV, (1, 64), (1, 64))], path)  # when there is room again
    assert result.resumed == len(kept.points)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_closed_folder_is_said_at_once(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(TableError, match="cannot be written"):
        sweep.run(FakeBackend(), [KernelRange(CONV, (1, 8), (1, 8))], tmp_path / "t.jsonl")


@pytest.mark.skipif(not os.path.isdir("/proc/1"), reason="needs a folder in which nobody can write")
def test_a_folder_in_which_nothing_can_be_made_is_said_at_once():
    backend = FakeBackend()
    for path in ("/proc/t.jsonl", "/proc/1/x/t.jsonl", "/dev/null/t.jsonl"):
        with pytest.raises(TableError, match="cannot be written"):
            sweep.run(backend, [KernelRange(CONV, (1, 8), (1, 8))], path)
    assert backend.asked == []
