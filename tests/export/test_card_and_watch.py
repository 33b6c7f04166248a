"""The folder to upload, and following a run."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halp_iee.cli.main import run as halp_iee
from halp_iee.cli.watch import lines
from halp_iee.errors import ArtifactError
from halp_iee.report import card as cards
from halp_iee.report.follow import state_of
from tests.export.conftest import Run
from tests.export.test_report import HOSTILE
from tests.export.test_report import a_run as a_report

yaml = pytest.importorskip("yaml", reason="PyYAML reads the card's header as a hub does")


def header(text: str) -> dict:
    _, between, _ = text.split("---\n", 2)
    return yaml.safe_load(between)


def test_the_folder_holds_what_the_card_says_and_what_it_says_works(a_run: Run, capsys) -> None:
    assert halp_iee(["export", str(a_run.root), "--precision", "int8"]) == 0
    assert halp_iee(["report", str(a_run.root), "--license", "apache-2.0", "--json"]) == 0
    hub = Path(json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))["hub"])
    assert {p.name for p in hub.iterdir()} == {
        "README.md", "config.json", "model.onnx", "model.safetensors", "exported.int8.onnx"
    }  # fmt: skip
    text = (hub / "README.md").read_text()
    told = header(text)
    assert told["license"] == "apache-2.0"
    assert told["model-index"][0]["results"][0]["metrics"][0]["value"] == pytest.approx(a_run.result["top1"])
    for figure in ("0.190 ms", "0.400 ms", "a CPU", "ONNX Runtime 1.31.1", "exported.int8.onnx", "halp-iee train"):
        assert figure in text
    assert str(a_run.root.parent) not in text  # nothing of the machine that made it
    code = text.split("```python\n")[1].split("```")[0]
    barred = "import sys; sys.modules.update(torch=None, halp_iee=None)\n"
    subprocess.run([sys.executable, "-c", f"{barred}{code}\nassert scores.shape == (1, 10)"], check=True, cwd=hub)
    compile(text.split("```python\n")[2].split("```")[0], "card", "exec")
    before = sorted(p.name for p in hub.iterdir())
    assert halp_iee(["report", str(a_run.root)]) == 0  # a licence once stated stays
    assert header((hub / "README.md").read_text())["license"] == "apache-2.0"
    assert sorted(p.name for p in hub.iterdir()) == before
    assert not list(a_run.root.glob(".*partial"))


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(a_report()["result"])), st.none() | st.floats() | st.text(max_size=12)),
    st.text(max_size=12),
)
def test_whatever_a_result_holds_the_header_is_yaml_of_the_same_keys(changes, license) -> None:
    told = header(cards.card(a_report()["result"] | changes, license=license))
    assert told["license"] == license
    assert set(told) <= {"license", "library_name", "tags", "pipeline_tag", "metrics", "model-index"}


def test_hostile_text_stays_text() -> None:
    result = a_report()["result"] | dict.fromkeys(("model", "device", "runtime", "method"), HOSTILE)
    text = cards.card(result, license=f"mit\nevil: {HOSTILE}")
    assert "evil" not in header(text)
    prose = text.split("---\n", 2)[2].split("```")[0]
    assert "<script>" not in prose


def test_a_folder_that_cannot_be_made_leaves_the_old_one(a_run: Run, monkeypatch, tmp_path) -> None:
    folder = cards.write_folder(tmp_path / "hub", a_run.result, [a_run.root / "model.onnx"])
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    monkeypatch.setattr(cards.json, "dumps", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(ArtifactError, match="no space"):
        cards.write_folder(folder, a_run.result, [])
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


# -- watch --


def write_events(run: Path, name: str, epochs: int, *, seconds: float = 2.0) -> None:
    (run / name).mkdir(parents=True, exist_ok=True)
    rows = [
        {"event": "epoch", "step": 10 * e, "epoch": e, "loss": 1 / e, "test_top1": 0.5, "seconds": seconds}
        for e in range(1, epochs + 1)
    ]
    if name == "slim":
        rows.insert(0, {"event": "prune", "step": 3, "cycle": 0, "latency_ms": 0.05})
    (run / name / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def begun(root: Path, epochs: int = 10) -> Path:
    root.mkdir()
    config = {"model": "net", "data": "digits", "method": "iee", "target": "0.5", "recipe": {"epochs": epochs},
              "device": {"batch": 1}}  # fmt: skip
    (root / "config.json").write_text(json.dumps(config))
    return root


def test_every_stage_is_named_as_far_as_it_has_come(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    assert state_of(run).stage == "making the latency table"
    (run / "calibration.json").write_text('[{"widths": {}, "measured_ms": 0.4}]')
    state = state_of(run)
    assert state.stage == "calibrating against whole networks"
    assert state.target_ms == pytest.approx(0.2)
    write_events(run, "dense", 4)
    state = state_of(run)
    assert state.stage == "in the training of the dense network"
    assert state.left_s == pytest.approx(6 * 2.0 + 10 * 2.0)  # the slim one is still to come
    write_events(run, "dense", 10)
    assert state_of(run).stage == "after the training of the dense network"
    write_events(run, "slim", 7, seconds=1.0)
    state = state_of(run)
    assert state.left_s == pytest.approx(3.0)
    assert "epoch 7 of 10" in lines(state)
    assert "25% of the target" in lines(state)
    assert "goes on where it stopped" in lines(state)  # nobody holds it
    (run / "model.safetensors").touch()
    assert state_of(run).stage == "exporting"


def test_a_run_that_another_process_holds_is_running(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    assert not state_of(run).running
    with open(run / ".lock", "w") as handle:
        assert not state_of(run).running
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert state_of(run).running


def test_a_log_that_is_being_written_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    write_events(run, "dense", 3)
    whole = (run / "dense" / "events.jsonl").read_bytes()
    for cut in np.linspace(0, len(whole), 40).astype(int):
        (run / "dense" / "events.jsonl").write_bytes(whole[:cut])
        (training,) = state_of(run).trainings
        assert training.epoch == sum(1 for line in whole[:cut].split(b"\n") if line.endswith(b"}"))


def test_the_command_follows_until_the_run_is_finished(a_run: Run, tmp_path: Path, capsys) -> None:
    assert halp_iee(["watch", str(a_run.root)]) == 0
    said = capsys.readouterr().out
    assert "finished" in said
    assert "met" in said
    result = (a_run.root / "result.json").read_text()
    (a_run.root / "result.json").unlink()
    held = open(a_run.root / ".lock", "w")  # noqa: SIM115
    fcntl.flock(held, fcntl.LOCK_EX)

    def finish() -> None:
        time.sleep(0.5)
        write_events(a_run.root, "slim", 1)
        time.sleep(0.5)
        (a_run.root / "result.json").write_text(result)
        held.close()

    work = threading.Thread(target=finish)
    work.start()
    assert halp_iee(["watch", str(a_run.root), "--interval", "0.1"]) == 0
    work.join()
    said = capsys.readouterr().out
    assert said.index("stage     measuring") < said.index("epoch 1 of 2") < said.index("stage     finished")


def test_watch_tells_json_and_names_mistakes(tmp_path: Path, capsys) -> None:
    run = begun(tmp_path / "run")
    assert halp_iee(["watch", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stage"] == "making the latency table"
    assert halp_iee(["watch", str(tmp_path)]) == 1
    assert "no run" in capsys.readouterr().err
    write_events(run, "dense", 2)
    (run / "dense" / "events.jsonl").write_text('nonsense\n{"event": "epoch", "step": 1}\n')
    assert halp_iee(["watch", str(run)]) == 1
    assert "not an event log" in capsys.readouterr().err
