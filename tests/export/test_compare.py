"""Several runs side by side: the frontier is right, settings are kept apart, hostile names do nothing."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halp_iee.cli.main import run as halp_iee
from halp_iee.errors import UsageError
from halp_iee.report import compare
from tests.export.conftest import Run
from tests.export.test_report import HOSTILE, Page


def a_result(**changes: Any) -> dict[str, Any]:
    return {
        "model": "resnet20", "data": "digits", "method": "iee", "seed": 0, "device": "this CPU", "runtime": "ORT 1",
        "threads": 1, "batch": 1, "measured_ms": 0.2, "predicted_ms": 0.19, "dense_measured_ms": 0.4,
        "dense_predicted_ms": 0.39, "top1": 0.96, "top1_dense": 0.98, "params": 100, "params_dense": 300, "macs": 10,
        "macs_dense": 30, "fps": 5000.0, "fps_dense": 2500.0, "train_flops_ratio": 0.3, "train_seconds": 3.0,
        "version": "0.1.0", **changes,
    }  # fmt: skip


def runs(count: int, seed: int = 0) -> dict[str, dict[str, Any]]:
    rng = random.Random(seed)
    return {
        f"run-{i}": a_result(
            measured_ms=round(rng.uniform(0.05, 0.5), 3), top1=round(rng.uniform(0.6, 0.99), 3), seed=i
        )
        for i in range(count)
    }


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(0, 6), st.sampled_from(["a", "b"])), min_size=1, max_size=8
    )
)  # fmt: skip
def test_the_frontier_is_what_enumeration_says_within_each_setting(points) -> None:
    given_runs = {
        f"r{i}": a_result(measured_ms=ms / 10, top1=top1 / 10, device=device, dense_measured_ms=None)
        for i, (ms, top1, device) in enumerate(points)
    }
    for one, (ms, top1, device) in zip(compare.entries(given_runs), points, strict=True):
        beaten = any(
            d == device and m <= ms and t >= top1 and (m, t) != (ms, top1) for m, t, d in points
        )  # fmt: skip
        assert one.frontier == (not beaten)


def test_the_dense_network_stands_there_once_with_its_best_accuracy() -> None:
    found = compare.entries({"a": a_result(top1_dense=0.97), "b": a_result(top1_dense=0.99), "c": a_result(batch=8)})
    dense = [one for one in found if one.kind == "dense"]
    assert [(one.setting == found[0].setting, one.top1) for one in dense] == [(True, 0.99), (False, 0.98)]


def test_modelled_latencies_are_said_to_be_and_never_beat_measured_ones() -> None:
    found = compare.entries({"m": a_result(), "g": a_result(measured_ms=None, predicted_ms=0.01, top1=0.999)})
    assert [one.frontier for one in found if one.kind == "run"] == [True, True]
    words = Page(compare.render(found)).words
    assert "10.0 µs, modelled" in words


def test_settings_have_a_chart_each_and_that_is_said() -> None:
    page = Page(compare.render(compare.entries({"a": a_result(), "b": a_result(threads=2)})))
    assert "Measured in different settings" in page.words
    assert [tag for tag, _ in page.tags].count("figure") == 2
    assert "Measured in different" not in Page(compare.render(compare.entries({"a": a_result()}))).words


def test_peers_are_marked_and_bad_ones_refused() -> None:
    found = compare.entries({"a": a_result()}, [{"name": "TP 50%", "latency_ms": 0.1, "top1": 0.99}])
    assert [(one.kind, one.frontier) for one in found] == [("run", False), ("dense", False), ("peer", True)]
    assert "TP 50%" in Page(compare.render(found)).words
    for peer in ({"name": "x"}, {"latency_ms": 1.0}, {"name": "x", "latency_ms": -1},
                 {"name": "x", "latency_ms": 1.0, "setting": "another"}):  # fmt: skip
        with pytest.raises(UsageError, match="cannot place the peer"):
            compare.entries({"a": a_result()}, [peer])
    with pytest.raises(UsageError, match="no run"):
        compare.render([])


def test_hostile_names_and_missing_figures_do_no_harm() -> None:
    bad = a_result(**dict.fromkeys(("model", "data", "method", "device", "runtime", "version"), HOSTILE), seed=None,
                   top1=None, params="many", macs=None, fps=float("nan"))  # fmt: skip
    page = Page(compare.render(compare.entries({HOSTILE: bad, "b": a_result()})))
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not {"img", "link"} & {tag for tag, _ in page.tags}
    assert "None" not in page.words
    assert "nan" not in page.words.lower()


def test_the_command_compares_runs_and_names_mistakes(a_run: Run, capsys, tmp_path) -> None:
    other = tmp_path / "other"
    import shutil

    shutil.copytree(a_run.root, other)
    out = tmp_path / "c.html"
    assert halp_iee(["report", str(a_run.root), str(other), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {one["name"] for one in told["entries"]} >= {"run", "other"}
    assert out.read_text().startswith("<!doctype html>")
    (tmp_path / "peers.json").write_text('{"name": 1}')
    for arguments, words in (
        ([str(a_run.root), str(tmp_path)], "not a run"),
        ([str(a_run.root), "--peers", str(tmp_path / "peers.json")], "peers.json"),
        ([str(a_run.root), str(other), "--out", str(tmp_path / "no" / "c.html")], "Cannot write"),
        ([str(a_run.root), str(other), "--license", "mit"], "run by run"),
    ):  # fmt: skip
        assert halp_iee(["report", *arguments]) in (1, 2)
        assert words in capsys.readouterr().err
