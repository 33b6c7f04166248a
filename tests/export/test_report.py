"""The report: one file, no network, never a crash, and the words for numbers kept apart."""

from __future__ import annotations

import json
import math
import random
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halp_iee.errors import ArtifactError, UsageError
from halp_iee.report import plots, text
from halp_iee.report.html import render, write

VOID = {"meta", "line", "polyline", "link", "br", "img"}


class Page(HTMLParser):
    """Checks that elements are closed in order, and collects what is on the page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def a_run(**changes: Any) -> dict[str, Any]:
    rng = random.Random(0)
    names = [f"layer{stage}.{block}.conv{conv}" for stage in (1, 2, 3) for block in range(3) for conv in (1, 2)]
    result = {
        "model": "resnet20", "data": "digits", "method": "iee", "seed": 0, "device": "this CPU", "target_ms": 0.1155,
        "dense_ms": 0.385, "predicted_ms": 0.114, "measured_ms": 0.1131, "source": "measured", "fps_dense": 2597.0,
        "fps": 8841.0, "top1_dense": 0.9694, "top1": 0.9639, "params_dense": 272474, "params": 41234,
        "macs_dense": 41_000_000, "macs": 7_100_000, "train_flops_ratio": 0.31, "wall_seconds": 271.0,
        "solver": "joint", "gap": 0.0003, "artifact": "runs/x/slim.safetensors", "report": "runs/x/report.html",
        **changes,
    }  # fmt: skip
    events: list[dict[str, Any]] = []
    for phase in ("dense", "slim"):
        events += [
            {"kind": "epoch", "epoch": e, "loss": 2.3 / e, "test_top1": 1 - 0.9 / e, "lr": 0.1, "phase": phase}
            for e in range(1, 21)
        ]
    for step in range(0, 200, 20):
        events.append({"kind": "prune", "step": step, "latency_ms": 0.09, "iou": 0.8, "survival": 0.5})
        events.append({"kind": "grow", "step": step + 10, "latency_ms": 0.115, "iou": 0.9})
    return {
        "result": result,
        "layers": [{"name": name, "dense_ms": rng.random(), "slim_ms": rng.random() / 3} for name in names],
        "fixed_ms": 0.01,
        "groups": [
            *(
                {"name": name, "size": 32, "kept": rng.randint(1, 32), "prunable": True, "reason": None}
                for name in names
            ),
            {"name": "fc", "size": 10, "kept": 10, "prunable": False, "reason": "it is the output"},
        ],
        "events": events,
        "calibration": [{"before_ms": 0.3, "predicted_ms": 0.33, "measured_ms": 0.34}],
        "table": {"device": "this CPU", "source": "measured", "points": 412, "held_out_error": 0.03},
        "environment": {"torch": "2.15.0"},
        "reproduce": "halp-iee train --model resnet20",
    }


def test_a_full_run_makes_a_page_with_every_part_and_its_figures():
    page = Page(render(a_run()))
    for part in (
        "Dense and slim, side by side", "Where the time goes", "Widths of the groups", "Predicted against measured",
        "Prune and grow", "Training", "Environment", "How to reproduce",
    ):  # fmt: skip
        assert part in page.words
    for figure in (
        "0.113 ms",
        "0.385 ms",
        "96.39%",
        "−0.55 points",
        "41.2 k",
        "×0.310",
        "3.4 times as fast",
        "8 841",
    ):
        assert figure in page.words, figure
    assert "target of 0.116 ms met" in page.words.lower()
    assert "it is the output" in page.words


@pytest.mark.parametrize(("predicted_ms", "said"), [(0.39, False), (0.45, False), (0.5, True), (0.2, True)])
def test_a_machine_that_changed_its_pace_is_told_of(predicted_ms: float, said: bool) -> None:
    page = Page(render(a_run(dense_predicted_ms=predicted_ms, dense_measured_ms=0.385)))
    assert ("changed its pace" in page.words) is said
    modelled = a_run(dense_predicted_ms=predicted_ms, dense_measured_ms=0.385, source="modelled")
    assert "changed its pace" not in Page(render(modelled)).words


def test_a_pruning_without_data_says_so_instead_of_not_measured() -> None:
    run = a_run(method="one-shot", data=None, top1=None, top1_dense=None, train_flops_ratio=None)
    words = Page(render(run)).words
    assert "no data given" in words
    assert "none, pruned in one step" in words
    with_data = Page(render(a_run(method="one-shot", top1_dense=None, train_seconds=3.0))).words
    assert "no data given" not in with_data
    assert "pruned in one step" not in with_data


def test_the_page_loads_nothing_and_is_small():
    page = render(a_run())
    assert "http://" not in page
    assert "https://" not in page
    assert len(page) < 200_000
    for tag, attributes in Page(page).tags:
        assert tag not in ("link", "img", "iframe", "object", "base")
        assert not {"src", "href", "srcset", "xlink:href"} & attributes.keys()
    assert not re.search(r"@import|url\s*\(|fetch\(|XMLHttpRequest", page)
    policy = next(a["content"] for t, a in Page(page).tags if t == "meta" and "content-security" in str(a).lower())
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_a_very_large_run_stays_small():
    run = a_run()
    run["events"] = [
        {"kind": "epoch", "epoch": e, "loss": 1 / e, "test_top1": 0.5, "phase": "slim"} for e in range(1, 20_000)
    ]
    run["events"] += [{"kind": "prune", "step": s, "latency_ms": 1.0 + s % 7, "iou": 0.5} for s in range(20_000)]
    run["layers"] = [{"name": f"a.long.name.of.a.layer.{i}", "dense_ms": 1.0, "slim_ms": 0.5} for i in range(3000)]
    assert len(render(run)) < 1_500_000


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)></script><!--&amp; {0} %s"


def test_hostile_names_are_shown_and_do_nothing():
    run = a_run(
        **dict.fromkeys(("model", "data", "method", "device", "solver", "artifact", "seed", "version"), HOSTILE)
    )
    for part in ("layers", "groups"):
        for row in run[part]:
            row["name"] = HOSTILE
    run["groups"][-1]["reason"] = HOSTILE
    for event in run["events"]:
        if event["kind"] == "epoch":
            event["phase"] = HOSTILE
    run |= {"environment": {HOSTILE: HOSTILE}, "reproduce": HOSTILE, "table": {"device": HOSTILE, HOSTILE: [HOSTILE]}}
    source = render(run)
    page = Page(source)
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert "img" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert HOSTILE.split()[0] in page.words
    embedded = re.search(r'<script type="application/json" id="result">(.*?)</script>', source, re.DOTALL)
    assert embedded is not None
    assert json.loads(embedded.group(1))["model"] == HOSTILE


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_is_missing_or_strange_the_page_comes_out_well_formed(data):
    run = a_run()
    for part in list(run):
        fate = data.draw(st.sampled_from(("whole", "gone", "junk", "bent")))
        if fate == "gone" and part != "result":
            del run[part]
        elif fate == "junk" and part != "result":
            run[part] = data.draw(JUNK)
        elif fate == "bent":
            for row in [run[part]] if isinstance(run[part], dict) else run[part] if isinstance(run[part], list) else []:
                for key in list(row):
                    if data.draw(st.integers(0, 5)) == 0:
                        row[key] = data.draw(JUNK)
            break  # one bent part is slow enough
    Page(render(run))


def test_an_empty_result_says_not_measured():
    page = Page(render({"result": {}}))
    assert "not measured" in page.words
    assert "None" not in page.words
    assert "nan" not in page.words.lower()


def test_a_modelled_latency_is_said_loudly_and_never_called_measured():
    source = render(a_run(source="modelled", measured_ms=None, device="titanv"))
    page = Page(source)
    assert page.words.index("Modelled, not measured") < page.words.index("is modelled at")
    assert "Latency, modelled" in page.words
    assert "Latency, predicted" not in page.words
    assert ' class="banner"' in source
    assert ' class="banner"' not in render(a_run())


def test_a_missed_target_and_an_unsteady_measurement_are_said():
    page = Page(render(a_run(measured_ms=0.13, unstable=True))).words
    assert "missed by 12.6%" in page
    assert "unsteady" in page


def test_nothing_is_written_where_it_cannot_be_and_an_old_page_survives(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    assert write(a_run(), path) == path
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ArtifactError, match="no space"):
        write(a_run(model="other"), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(ArtifactError, match="missing"):
        write(a_run(), tmp_path / "missing" / "report.html")
    for nothing in ({}, {"result": None}, [], {"result": [1]}):
        with pytest.raises(UsageError, match="no result"):
            render(nothing)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)), max_size=8),
    st.booleans(),
    st.booleans(),
)
def test_charts_place_every_point_inside_whatever_the_range(points, same_scale, y_from_zero):
    drawn = plots.chart(
        [plots.Series("a", "slim", points, dots=True)], x_unit="x", same_scale=same_scale, y_from_zero=y_from_zero
    )
    for value in re.findall(r"(?:left|bottom):(-?[\d.]+|[a-z]+)%", drawn):
        assert -0.01 <= float(value) <= 100.01
    if drawn:
        Page(drawn)


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e12, 1e12), st.floats(0, 1e12))
def test_ticks_are_few_round_and_enclose_the_range(low, extent):
    found = plots.ticks(low, low + extent, pad=True)
    assert 1 < len(found) <= 8
    assert found == sorted(set(found))
    slack = 1e-6 * max(abs(low), abs(low + extent), 1e-300)
    assert found[0] <= low + slack
    assert found[-1] >= low + extent - slack


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0123, "0.0123"), (1.234, "1.23"), (9.996, "10.0"), (123.4, "123"), (12345, "12300"), (0, "0"), (-2.5, "-2.50")],
)
def test_figures_are_three_without_exponents(value, shown):
    assert text.figures(value) == shown


def test_quantities_read_well():
    assert text.ms(0.0523) == "52.3 µs"
    assert text.ms(0.385) == "0.385 ms"
    assert text.ms(1500) == "1.5 s"
    assert text.ms(math.nan) == text.ms(None) == text.ms("fast") == "not measured"
    assert text.big(25_557_032) == "25.6 M"
    assert text.seconds(271) == "4 min 31 s"
    assert text.seconds(7300) == "2 h 01 min"
    assert text.points(0.97, 0.97) == "±0 points"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 500), st.integers(1, 2000))
def test_what_is_counted_in_whole_numbers_has_whole_labels(first: int, length: int) -> None:
    points = [(float(first + i * length / 7 // 1), float(i)) for i in range(8)]
    drawn = plots.chart([plots.Series("a", "slim", points)], x_unit="epoch")
    labels = re.findall(r"left:[\d.]+%\">([^<]*)</span>", drawn)
    assert all(float(label).is_integer() for label in labels)
    assert len(labels) >= min(2, len({x for x, _ in points}))
