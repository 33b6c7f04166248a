import json
import multiprocessing
import os
import random

import pytest

from halp_profiler import table as tables
from halp_profiler.errors import TableError
from halp_profiler.records import Point
from tests.profiler.fakes import CONV, LINEAR, header, point


def some_points(n, seed=0):
    rng = random.Random(seed)
    widths = rng.sample(range(1, 4 * n), n)
    return [Point(CONV, c, rng.randint(1, 64), rng.random(), rng.random(), rng.random(), 9) for c in widths]


@pytest.fixture
def path(tmp_path):
    p = tmp_path / "t.jsonl"
    tables.create_or_check(p, header())
    return p


def test_what_is_written_is_read(path):
    points = some_points(50)
    tables.append(path, points)
    read = tables.read(path)
    assert read.header == header()
    assert [p.key for p in read.points] == [p.key for p in points]
    assert [p.median_ms for p in read.points] == pytest.approx([p.median_ms for p in points], rel=1e-4)


def test_a_line_cut_anywhere_loses_only_itself(path):
    points = some_points(6)
    tables.append(path, points)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole), 7):
        path.write_bytes(whole[:end])
        kept = tables.read(path).points
        assert [p.key for p in kept] == [p.key for p in points[: whole[:end].count(b"\n") - 1]]
        tables.append(path, [point(LINEAR, 3, 3, 1.0)])
        assert [p.key for p in tables.read(path).points] == [*(p.key for p in kept), (LINEAR, 3, 3)]


def test_a_file_killed_within_its_header_begins_again(path):
    whole = path.read_bytes()
    for end in range(0, len(whole) - 1, 11):
        path.write_bytes(whole[:end] if end == 0 or end > 10 else b"")
        assert tables.create_or_check(path, header()).points == ()
        assert tables.read(path).header == header()


def _append_many(path, seed):
    for i in range(40):
        tables.append(path, [point(CONV, seed * 1000 + i + 1, 8, 0.5), point(CONV, seed * 1000 + i + 1, 16, 0.5)])


def test_two_processes_on_one_table_do_not_damage_it(path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_many, args=(path, seed)) for seed in (1, 2)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
        assert w.exitcode == 0
    assert len(tables.read(path).points) == 2 * 40 * 2


def line(**changes):
    return json.dumps({**point(CONV, 8, 8, 1.0).to_json(), **changes}).encode() + b"\n"


HOSTILE = {
    "not JSON": b"hello\n",
    "a list": b"[1, 2]\n",
    "a number": b"17\n",
    "not a number": line().replace(b"1.0", b"NaN", 1),
    "infinite": line().replace(b"1.0", b"Infinity", 1),
    "too large to be finite": line().replace(b"1.0", b"1e999", 1),
    "negative": line(median_ms=-1),
    "text for a latency": line(median_ms="1.0"),
    "true for a latency": line(p25_ms=True),
    "no latency": line(median_ms=None),
    "no channels": line(c_in=0),
    "half a channel": line(c_in=1.5),
    "a great many channels": line(c_in=10**30),
    "digits without end": b'{"c_in":' + b"9" * 6000 + b"}\n",
    "an unknown operation": line(op="system"),
    "flags that are none": line(flags={"a": 1}),
    "nested without end": b"[" * 50_000 + b"\n",
    "a line without end": b'"' + b"a" * 100_000 + b'"\n',
    "no text at all": bytes(range(256)) + b"\n",
    "another device's header": json.dumps(header(batch=2).to_json()).encode() + b"\n",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_line_ends_in_a_clear_error_and_the_file_stays(path, what):
    tables.append(path, some_points(3))
    before = path.read_bytes() + HOSTILE[what] + line()
    path.write_bytes(before)
    with pytest.raises(TableError, match="line 5") as error:
        tables.read(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    with pytest.raises(TableError):
        tables.create_or_check(path, header())
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n\n",
        b"{}\n",
        b'{"record":"header"}\n',
        b'{"record":"header","schema":99}\n',
        b"PK\x03\x04 zip\n",
    ],
)
def test_what_is_no_table_is_refused(tmp_path, data):
    path = tmp_path / "t.jsonl"
    path.write_bytes(data)
    with pytest.raises(TableError):
        tables.read(path)


@pytest.mark.parametrize(
    "field", ["device", "batch", "source", "backend", "backend_version", "precision", "layout", "how"]
)
def test_a_broken_header_is_refused(tmp_path, field):
    path = tmp_path / "t.jsonl"
    for value in (
        None,
        3.5,
        [],
        "" if field not in ("layout", "precision", "backend", "backend_version") else 7,
    ):
        if field == "how" and value is None:
            continue
        data = {**header().to_json(), field: value}
        path.write_text(json.dumps(data) + "\n")
        with pytest.raises(TableError, match="header"):
            tables.read(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"device": {"name": "Other CPU", "threads": 1}}, {"device": {"name": "Test CPU", "threads": 2}},
        {"batch": 8}, {"precision": "fp16"}, {"source": "modelled"}, {"backend_version": "2"}, {"backend": "b"},
    ],
)  # fmt: skip
def test_a_table_of_another_device_or_setting_is_left_as_it_is(path, changes):
    tables.append(path, some_points(3))
    before = path.read_bytes()
    with pytest.raises(TableError, match="another device or setting"):
        tables.create_or_check(path, header(**changes))
    assert path.read_bytes() == before


def test_someone_elses_file_is_not_overwritten(tmp_path):
    path = tmp_path / "thesis.txt"
    path.write_text("no newline at its end")
    with pytest.raises(TableError):
        tables.create_or_check(path, header())
    assert path.read_text() == "no newline at its end"


def test_tables_of_one_device_merge_and_so_do_their_files(tmp_path):
    a, b, both, out = (tmp_path / n for n in ("a.jsonl", "b.jsonl", "both.jsonl", "out.jsonl"))
    for path, seed in ((a, 1), (b, 2)):
        tables.create_or_check(path, header())
        tables.append(path, some_points(20, seed))
    both.write_bytes(a.read_bytes() + b.read_bytes())
    merged = tables.merge([a, b], out)
    assert {p.key: p for p in tables.read(both).points} == {p.key: p for p in tables.read(out).points}
    assert set(merged.keys()) == tables.read(a).keys() | tables.read(b).keys()


def test_tables_of_different_devices_do_not_merge(tmp_path):
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"
    tables.create_or_check(a, header())
    tables.create_or_check(b, header(batch=4))
    with pytest.raises(TableError, match="batch"):
        tables.merge([a, b], out)
    assert not out.exists()


def test_a_steady_reading_beats_an_unsteady_one(path):
    tables.append(
        path, [point(CONV, 8, 8, 1.0), point(CONV, 8, 8, 9.0, "unstable"), point(CONV, 9, 9, 5.0, "unstable")]
    )
    tables.append(path, [point(CONV, 9, 9, 2.0)])
    assert {p.c_in: p.median_ms for p in tables.read(path).points} == {8: 1.0, 9: 2.0}


def test_a_full_disk_is_said_and_loses_nothing(path, monkeypatch):
    tables.append(path, some_points(3))
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TableError, match="No space left"):
        tables.append(path, some_points(3, seed=1))
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    for act in (
        lambda: tables.create_or_check(blocked / "t.jsonl", header()),
        lambda: tables.write(tables.Table(header(), ()), blocked / "t.jsonl"),
        lambda: tables.create_or_check(tmp_path, header()),
    ):
        with pytest.raises(TableError, match="cannot be written"):
            act()


def test_pandas_reads_a_table_in_one_call(path):
    pandas = pytest.importorskip("pandas")
    tables.append(path, some_points(5))
    frame = pandas.read_json(path, lines=True)
    assert frame["median_ms"].notna().sum() == 5
