"""Whatever a person gets wrong: one line with what, why and the remedy, the right exit code, nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halp_iee.cli.main import run
from halp_iee.run.reload import RESULT_KEYS

FAST = ["--time-budget", "2", "--epochs", "1"]


def complaint(capsys: pytest.CaptureFixture[str], code: int, expected: int) -> str:
    captured = capsys.readouterr()
    assert code == expected, captured.err
    assert captured.out == ""
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith("halp-iee: ")
    assert "Traceback" not in captured.err
    assert "fault of halp-iee" not in captured.err
    return last


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "--model", "resnet21"], 2, "resnet20"),
        (["train", "--model", "timm:nonsense_net"], 2, "timm"),
        (["train", "--model", "missing.py:build"], 2, "missing.py"),
        (["train", "--data", "digitz"], 2, "digits"),
        (["train", "--data", "imagefolder:/nowhere"], 1, "/nowhere"),
        (["train", "--data", "cifar10:"], 2, "cifar10"),
        (["train", "--gpu", "titanw"], 2, "titanv"),
        (["train", "--gpu", "titanv", "--source", "measured"], 3, "not attached"),
        (["train", "--latency-target", "0"], 2, "above 0"),
        (["train", "--latency-target", "-1"], 2, "above 0"),
        (["train", "--latency-target", "1.5"], 2, "(0, 1]"),
        (["train", "--latency-target", "abc"], 2, "abc"),
        (["train", "--table", "no-such-table"], 1, "searched"),
        (["train", "--weights", "nowhere.safetensors"], 1, "nowhere.safetensors"),
        (["train", "--recipe", "nowhere.json"], 1, "nowhere.json"),
        (["train", "--epochs", "0"], 2, "epochs"),
        (["train", "--lr", "nan"], 2, "lr"),
        (["profile", "--model", "resnet20", "--input-shape", "0,1"], 2, "shape"),
        (["profile", "--model", "resnet20", "--input-shape", "3,32,32"], 1, "got 3 channels"),
        (["prune", "--importance", "taylor_bn"], 2, "--data"),
        (["prune", "--finetune-epochs", "2"], 2, "--data"),
        (["prune", "--importance", "charm"], 2, "taylor_bn"),
        (["export", "nowhere"], 1, "nowhere"),
        (["export", "."], 1, "not a run"),
        (["bench", "nowhere.onnx"], 1, "nowhere.onnx"),
        (["bench", "nonsense_net"], 2, "nonsense_net"),
        (["bench"], 2, "ARTIFACT"),
        (["report", "nowhere"], 1, "nowhere"),
        (["report", "nowhere", "elsewhere"], 1, "nowhere"),
        (["watch", "nowhere"], 1, "nowhere"),
        (["watch", "."], 1, "config.json"),
        (["tables", "show", "no-such-table"], 1, "searched"),
        (["tables", "check", "no-such-table"], 1, "searched"),
        (["graph", "--model", "resnet21"], 2, "resnet20"),
        (["frontier", "--importance", "taylor_bn"], 2, "magnitude"),
        (["nonsense"], 2, "nonsense"),
        (["train", "--nonsense"], 2, "nonsense"),
    ],
)
def test_a_mistake_is_named_in_one_line(
    network: str, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    before = set(Path(".").rglob("*"))
    got = run(arguments)
    assert words.lower() in complaint(capsys, got, code).lower()
    left = set(Path(".").rglob("*")) - before - {Path("runs")}
    assert not [p for p in left if p.is_file() and p.name not in (".lock", "config.json")], left


@pytest.mark.parametrize("function", ["fails", "wrong", "absent"])
def test_a_builder_that_does_not_build_is_named(
    network: str, capsys: pytest.CaptureFixture[str], function: str
) -> None:
    got = run(["graph", "--model", network.replace(":build", f":{function}")])
    assert function in complaint(capsys, got, 2)


def test_a_target_under_the_floor_ends_in_4_and_says_what_can_be_had(
    network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    got = run(["train", "--model", network, *FAST, "--latency-target", "0.0001", "--out", "run"])
    assert " ms" in complaint(capsys, got, 4)
    assert not Path("run/result.json").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b'{"epoch": 3}', b"\xff\xfe\x00", b'{"epochs": "many"}'])
def test_a_broken_recipe_is_refused(network: str, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    Path("recipe.json").write_bytes(content)
    got = run(["train", "--model", network, "--recipe", "recipe.json"])
    assert "recipe" in complaint(capsys, got, 1 if content in (b"", b"{", b"\xff\xfe\x00") else 2)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b'{"record": "header"}\n', b"[]\n", b'{"a": NaN}\n'])
def test_a_broken_table_is_refused_and_left_as_it_is(
    network: str, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    path = Path("broken.jsonl")
    path.write_bytes(content)
    got = run(["profile", "--model", network, "--input-shape", "1,32,32", "--out", str(path), "--time-budget", "2"])
    if content:
        assert "broken.jsonl" in complaint(capsys, got, 1)
        assert path.read_bytes() == content
    else:
        assert got in (0, 1)


def test_a_table_of_another_device_is_refused_and_left_as_it_is(
    network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["profile", "--model", network, "--input-shape", "1,32,32", "--out", "t.jsonl", "--time-budget", "2"]
    assert run([*common, "--gpu", "titanv"]) == 0
    capsys.readouterr()
    before = Path("t.jsonl").read_bytes()
    assert "t.jsonl" in complaint(capsys, run(common), 1)
    assert Path("t.jsonl").read_bytes() == before


def test_a_run_that_failed_at_once_leaves_its_directory_free(network: str, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["train", "--model", network, *FAST, "--gpu", "titanv", "--out", "run"]
    common += ["--no-dense", "--latency-target", "0.95"]
    assert "not attached" in complaint(capsys, run([*common, "--source", "measured"]), 3)
    assert run(common) == 0
    assert "NOT measured" in capsys.readouterr().out


def test_a_run_that_is_a_file_or_whose_files_were_broken_is_refused(
    network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("")
    got = run(["train", "--model", network, *FAST, "--out", "file"])
    assert "file" in complaint(capsys, got, 1)
    Path("run/dense").mkdir(parents=True)
    Path("run/config.json").write_text("{")
    got = run(["train", "--model", network, *FAST, "--out", "run"])
    assert "config.json" in complaint(capsys, got, 1)
    Path("run/config.json").write_text("{}")
    Path("run/result.json").write_text(json.dumps({"model": "x"}))
    assert "broken" in complaint(capsys, run(["export", "run"]), 1)


def test_an_artifact_that_was_edited_is_refused(network: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("run/config.json").write_text("{}")
    result = {"model": network, "input_shape": [1, 32, 32], "target_ms": 1, "num_classes": 10, "batch": 1, "seed": 0}
    Path("run/result.json").write_text(json.dumps(dict.fromkeys(RESULT_KEYS) | result))
    Path("run/model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    assert "model.safetensors" in complaint(capsys, run(["export", "run"]), 1)
    assert not Path("run/exported.onnx").exists()
