"""The command line that a run's page names asks for that very run."""

from __future__ import annotations

import json
import shlex
from types import SimpleNamespace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halp_iee import pipeline
from halp_iee.cli import show
from halp_iee.cli.main import run as halp_iee
from halp_iee.run.command import command
from halp_iee.run.job import DeviceChoice, Job
from halp_iee.run.question import Budget, Question
from halp_iee.run.target import Target
from halp_iee.train.recipe import Recipe

names = st.sampled_from(["resnet50", "my nets/a b.py:build", "timm:regnety_002", "it's.py:net"])
targets = st.one_of(
    st.floats(1e-3, 1.0).map(lambda v: Target(v, "fraction")),
    st.floats(1e-3, 1e4).map(lambda v: Target(v, "ms")),
    st.integers(1, 5000).map(lambda v: Target(float(v), "fps")),
)
devices = st.builds(
    DeviceChoice,
    name=st.sampled_from(["cpu", "titanv", "NVIDIA H200"]),
    source=st.sampled_from(["auto", "measured", "modelled"]),
    threads=st.integers(1, 64), batch=st.integers(1, 512),
    table=st.sampled_from([None, "a table.jsonl", "amd-epyc-ort1.31.1-t1-b1-fp32-resnet50"]),
    time_budget_s=st.one_of(st.none(), st.floats(1.0, 1000.0)), max_error=st.floats(0.001, 0.5),
    backend=st.sampled_from([None, "onnxruntime-cpu", "torch"]), precision=st.sampled_from(["fp32", "fp16"]),
    layout=st.sampled_from([None, "nhwc"]), l2=st.sampled_from(["warm", "cold"]),
)  # fmt: skip
recipes = st.fixed_dictionaries(
    {},
    optional={
        "batch_size": st.integers(1, 512), "lr": st.floats(1e-5, 1.0), "optimizer": st.just("adamw"),
        "weight_decay": st.floats(0, 0.1), "label_smoothing": st.floats(0, 0.5), "augment": st.just(False),
        "schedule": st.just("constant"), "distill": st.floats(0, 1),
    },
)  # fmt: skip
shapes = st.sampled_from([None, (3, 224, 224), (1, 20, 20)])
ANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def asked_for(job: Job, monkeypatch: Any, folder: Any) -> Job:
    """The job that comes of typing the command."""
    *before, line = command(job).splitlines()
    for text in before:
        echo, words, arrow, name = shlex.split(text)
        assert (echo, arrow) == ("echo", ">")
        json.loads(words)
        (folder / name).write_text(words)
    found: list[Job] = []

    def taken(job: Job, *_: Any) -> Any:
        found.append(job)
        return SimpleNamespace(result={})

    monkeypatch.chdir(folder)
    monkeypatch.setattr(pipeline, "train", taken)
    monkeypatch.setattr(pipeline, "prune", taken)
    monkeypatch.setattr(show, "finished", lambda *_: 0)
    program, *arguments = shlex.split(line)
    assert program == "halp-iee"
    assert halp_iee(arguments) == 0, line
    return found[0]


def told(job: Job) -> dict[str, Any]:
    return job.config() | {"train_on": job.train_on}


@ANY
@given(
    names, targets, devices, recipes, shapes, st.integers(0, 2**31 - 1), st.integers(0, 5),
    st.one_of(
        st.builds(Question, min_fraction=st.floats(0, 1), width_step=st.integers(1, 32),
                  also=st.sampled_from([(), (Budget("b 32.jsonl", Target(0.4, "fraction")),)]),
                  allow_block_removal=st.booleans()),
        st.builds(Question, keep_importance=st.floats(0.01, 1)),
    ),
    st.sampled_from([None, "digits", "imagefolder:/data/a b"]),
)  # fmt: skip
def test_a_pruning_is_asked_for_again_by_its_command(
    tmp_path, monkeypatch, model, target, device, recipe, shape, seed, epochs, question, data
) -> None:
    target = Target(1.0, "fraction") if question.keep_importance is not None else target
    job = Job(
        model, data, Recipe.of({**recipe, "epochs": max(1, epochs if data else 0), "seed": seed}), target, "one-shot",
        device, seed=seed, dense=False, input_shape=shape, criterion="taylor_bn" if data else "magnitude_l2",
        finetune_epochs=epochs if data else 0, question=question,
    )  # fmt: skip
    assert told(asked_for(job, monkeypatch, tmp_path)) == told(job)


@ANY
@given(
    names, targets, devices, recipes, st.integers(0, 2**31 - 1), st.booleans(),
    st.fixed_dictionaries({}, optional={"epochs": st.integers(2, 90)}),
    st.sampled_from([("iee", {"H": 3, "freeze": False, "omega_end": 0.05}), ("iee", {}), ("halp", {"steps": 4})]),
    st.sampled_from([None, "a b.safetensors"]), st.sampled_from(["auto", "cpu"]),
)  # fmt: skip
def test_a_training_is_asked_for_again_by_its_command(
    tmp_path, monkeypatch, model, target, device, recipe, seed, dense, length, method, weights, where
) -> None:
    job = Job(
        model, "digits", Recipe.of({**recipe, **length, "seed": seed}), target, method[0], device, seed=seed,
        dense=dense, weights=weights, switches=method[1], train_on=where,
    )  # fmt: skip
    assert told(asked_for(job, monkeypatch, tmp_path)) == told(job)


def test_what_every_run_has_is_a_line_that_a_person_reads() -> None:
    job = Job("resnet50", None, Recipe(), Target(0.4, "fraction"), "one-shot", DeviceChoice(table="t.jsonl"))
    assert command(job) == (
        "halp-iee prune --model resnet50 --latency-target 0.4 --seed 0 --threads 1 --batch 1 --table t.jsonl"
    )
    first, second = command(Job("a", "digits", Recipe.of({"augment": False}))).splitlines()
    assert first == """echo '{"augment": false}' > recipe.json"""
    assert second.endswith("--recipe recipe.json")
