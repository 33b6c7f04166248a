"""The pages as a browser shows them: on a phone and on a screen, light and dark, without a complaint."""

from __future__ import annotations

import copy
import random
import sys
from pathlib import Path

import pytest

from halp_iee.report import compare
from halp_iee.report.html import write
from tests.export import browser
from tests.export.test_compare import runs
from tests.export.test_report import a_run

pytestmark = pytest.mark.skipif(browser.find() is None, reason="no Chromium or Chrome is installed here")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory):
    if sys.platform != "linux":
        pytest.skip("the pipe to the browser is made for Linux")
    opened = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def full_run(layers: int = 18) -> dict:
    """Every part of the page, with names as long as networks have them."""
    run = copy.deepcopy(a_run())
    rng = random.Random(1)
    run["layers"] = [
        {
            "name": f"features.denseblock{i}.denselayer{i}.conv{i}#2",
            "dense_ms": rng.random(),
            "slim_ms": rng.random() / 3,
        }
        for i in range(layers)
    ]
    for group in run["groups"]:
        group["steps"] = [8, 16, 24]
    run["staircases"] = [
        {"name": f"layer{i}.0.conv2", "c_in": 48, "widths": list(range(1, 65)), "dense": 64, "chosen": 40,
         "ms": [0.01 * (1 + (k - 1) // 16) + 0.0001 * k for k in range(1, 65)]} for i in range(6)
    ]  # fmt: skip
    run["result"] |= {
        "train_seconds": 30.0, "train_seconds_dense": 44.0,
        "train_cost": {
            "stages": {name: {"steps": 30, "flops": 3e12} for name in ("estimate", "improve", "explore", "train")},
            "seconds": {"importance": 4.0, "train": 20.0}, "overhead_seconds": {"solving": 1.5, "resizing": 0.5},
        },
    }  # fmt: skip
    run["exports"] = [
        {"path": f"/x/exported.{kind}", "format": kind, "precision": "int8", "runtime": "ONNX Runtime 1.31.1",
         "bytes": 123456, "top1": 0.961, "latency_ms": 0.1, "latency_fp32_ms": 0.12, "max_error": None}
        for kind in ("onnx", "openvino")
    ]  # fmt: skip
    return run


def comparison(folder: Path) -> Path:
    return compare.write(
        compare.entries(runs(9, seed=3), [{"name": "peer", "latency_ms": 0.3, "top1": 0.9}]), folder / "c.html"
    )


@pytest.mark.parametrize("page", ["report", "comparison"])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 768, 1400])
def test_nothing_complains_sticks_out_or_overlaps(chromium, tmp_path: Path, page: str, width: int, dark: bool) -> None:
    path = write(full_run(), tmp_path / "r.html") if page == "report" else comparison(tmp_path)
    chromium.complaints.clear()
    chromium.requests.clear()
    seconds = chromium.open(path, width=width, dark=dark)
    assert chromium.complaints == []
    assert chromium.requests == [path.as_uri()]
    assert chromium.evaluate("document.documentElement.clientWidth") == width
    assert chromium.evaluate(browser.OVERFLOW) == []
    assert chromium.evaluate(browser.OVERLAP) == []
    paper = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, paper.strip("rgb()").split(",")))
    assert (brightness < 200) == dark
    assert seconds < 2


def test_the_check_itself_finds_what_sticks_out_and_what_overlaps(chromium, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><main><p style='width:900px'>wide</p>"
        "<p style='position:absolute;top:200px'>one text</p>"
        "<p style='position:absolute;top:203px'>on another</p></main>"
        "<script>console.error('x'); fetch('https://example.invalid/'); throw new Error('y')</script>"
    )
    chromium.complaints.clear()
    chromium.open(tmp_path / "bad.html", width=400)
    assert len(chromium.complaints) >= 2
    assert chromium.evaluate(browser.OVERFLOW)
    assert chromium.evaluate(browser.OVERLAP)


def test_a_page_of_a_thousand_layers_is_small_and_opens_at_once(chromium, tmp_path: Path) -> None:
    run = full_run(layers=1000)
    run["groups"] = [{**run["groups"][0], "name": f"group{i}"} for i in range(1000)]
    path = write(run, tmp_path / "r.html")
    assert path.stat().st_size < 5_000_000
    assert chromium.open(path, width=1400) < 2


def test_a_click_on_a_heading_sorts_the_table_both_ways(chromium, tmp_path: Path) -> None:
    chromium.open(comparison(tmp_path), width=1400)
    column = "[...document.querySelectorAll('table.sortable tbody tr')].map((r) => r.cells[7].dataset.value)"
    click = "document.querySelectorAll('table.sortable th')[7].click()"
    before = chromium.evaluate(column)
    chromium.evaluate(click)
    up = [float(value) for value in chromium.evaluate(column) if value is not None]
    chromium.evaluate(click)
    down = [float(value) for value in chromium.evaluate(column) if value is not None]
    assert up == sorted(up)
    assert down == up[::-1]
    assert len(set(up)) > 3
    assert before is not None


def test_a_tip_shows_under_the_pointer(chromium, tmp_path: Path) -> None:
    chromium.open(write(full_run(), tmp_path / "r.html"), width=1400)
    assert chromium.evaluate("document.getElementById('tip').hidden")
    chromium.evaluate(
        "document.querySelector('[data-tip]').dispatchEvent(new PointerEvent('pointermove', {bubbles: true}))"
    )
    assert not chromium.evaluate("document.getElementById('tip').hidden")


@pytest.mark.parametrize("layers", [3, 150])
@pytest.mark.parametrize("width", [400, 1400])
def test_the_bar_of_layers_is_as_long_as_what_it_stands_for(chromium, tmp_path: Path, layers: int, width: int) -> None:
    run = full_run(layers)
    dense, slim = (sum(one[key] for one in run["layers"]) + run["fixed_ms"] for key in ("dense_ms", "slim_ms"))
    run["result"]["target_ms"] = 0.5 * dense
    chromium.open(write(run, tmp_path / "r.html"), width=width)
    shares = chromium.evaluate(
        "[...document.querySelectorAll('.track')].map(track => [...track.querySelectorAll('.stack i')].at(-1)"
        ".getBoundingClientRect().right).map((right, i, all) => {"
        "const box = document.querySelectorAll('.track')[i].getBoundingClientRect();"
        "return (right - box.left) / box.width})"
    )
    assert shares == pytest.approx([1.0, slim / dense], abs=0.01)  # browsers round each part down to 1/64 of a pixel
    mark = chromium.evaluate(
        "(() => { const t = document.querySelector('.track').getBoundingClientRect();"
        "return (document.querySelector('.mark').getBoundingClientRect().left - t.left) / t.width })()"
    )
    assert mark == pytest.approx(0.5, abs=0.01)


def test_rows_that_hardly_matter_are_folded_and_on_paper_all_there(chromium, tmp_path: Path) -> None:
    run = full_run(0)
    run["layers"] = [{"name": f"large{i}", "dense_ms": 1.0, "slim_ms": 0.5} for i in range(5)]
    run["fixed_ms"] = 0.0
    run["layers"] += [{"name": f"small{i}", "dense_ms": 0.001, "slim_ms": 0.0005} for i in range(20)]
    chromium.open(write(run, tmp_path / "r.html"), width=1400)
    assert chromium.evaluate("document.querySelector('summary').textContent").startswith("20 more")
    assert "20.0 \u00b5s \u2192 10.0 \u00b5s" in chromium.evaluate("document.querySelector('summary').textContent")
    tall = chromium.evaluate("document.querySelector('details').getBoundingClientRect().height")
    assert tall < 40
    chromium.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert chromium.evaluate("document.querySelector('details').getBoundingClientRect().height") > 20 * 14
    chromium.call("Emulation.setEmulatedMedia", media="", features=[])


def test_nothing_is_cut_off_on_paper(chromium, tmp_path: Path) -> None:
    """A table that scrolls on a screen is cut at the edge of a sheet."""
    chromium.open(write(full_run(), tmp_path / "r.html"), width=700)
    chromium.call("Emulation.setEmulatedMedia", media="print", features=[])
    wide = "[...document.querySelectorAll('.scroll table')].map(t => t.getBoundingClientRect().right)"
    assert max(chromium.evaluate(wide)) <= 700
    chromium.call("Emulation.setEmulatedMedia", media="", features=[])
