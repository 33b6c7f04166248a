"""Several processes: two train as one does with the same global batch, and agree to the bit among themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from halp_iee.errors import HalpError, TargetError, UsageError
from halp_iee.train import Recipe, fit
from halp_iee.train.processes import Processes, shared_statistics, started

ROOT = Path(__file__).parents[2]


def job(folder: Path, name: str, rank_says: bool = True) -> dict:
    """One training of this file's, in this process or in one of several; what it ended with."""
    from halp_iee import IEE, IEEConfig
    from halp_iee.graph import trace
    from halp_iee.train import EventLog, make_optimizer
    from halp_iee.train.records import Data
    from halp_iee.train.tensors import TensorSplit
    from tests.methods.conftest import FakeCost, Tiny

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(100) % 3
    images = torch.randn(100, 2, 8, 8, generator=generator) + 0.5 * labels[:, None, None, None]
    data = Data(
        "tiny", ("a", "b", "c"), (2, 8, 8), TensorSplit(images[:70], labels[:70], augmentation="crop-flip"),
        TensorSplit(images[70:], labels[70:]),
    )  # fmt: skip
    torch.manual_seed(0)
    model = Tiny()
    changes = {
        "plain": {}, "accumulated": {"accumulate": 2, "ema_decay": 0.9}, "stopped": {},
        "informative": {"informative_after": 2},
    }[name]  # fmt: skip
    if "accumulate" in changes:  # BatchNorm sees one part at a time, so the parts must be the same images: none here
        for module in model.modules():
            for child, inner in module.named_children():
                if isinstance(inner, nn.BatchNorm2d):
                    setattr(module, child, nn.GroupNorm(inner.num_features, inner.num_features))
    graph = trace(model, images[:1])
    rcp = Recipe(epochs=4, batch_size=10, lr=0.02, **changes)
    optimizer = make_optimizer(model, rcp)
    processes = Processes.here()
    calls = []

    def clock(keep):
        calls.append(processes.rank)
        return 1.05 * FakeCost(graph).predict({n: len(u) for n, u in keep.items()})

    config = IEEConfig(H=2, J=2, Q=2, T=3, criterion="taylor_bn")
    with EventLog(folder / "log" if processes.first else None) as log:
        iee = IEE(model, graph, FakeCost(graph), target=0.5, optimizer=optimizer, config=config, measure=clock,
                  on_event=lambda event: log.log(event.pop("kind"), **event))  # fmt: skip
        history = None
        for stop in (9, None) if name == "stopped" else (None,):
            history = fit(model, data, rcp, method=iee, optimizer=optimizer, events=log, stop_after=stop,
                          checkpoint_dir=folder if name == "stopped" else None)  # fmt: skip
    assert set(calls) <= {0}, "the first process alone measures"
    return {
        "keep": {n: u.tolist() for n, u in iee.keep.items()}, "top1": [e.test_top1 for e in history.epochs],
        "loss": [e.loss for e in history.epochs], "resumed": history.resumed_from,
        "values": {n: t.double().flatten().tolist() for n, t in model.state_dict().items()},
        "rank": processes.rank, "world": processes.world,
    }  # fmt: skip


LAUNCHED = """
import json, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from halp_iee.train.processes import started
from tests.train.test_processes import job
folder = Path({folder!r})
with started() as processes:
    found = job(folder, {name!r})
    (folder / f"rank{{processes.rank}}.json").write_text(json.dumps(found))
threads = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in threads if "gloo" in name], threads  # such a thread can abort the process as it ends
"""


def launched(folder: Path, name: str, processes: int = 2) -> list[dict]:
    script = folder / "launched.py"
    script.write_text(LAUNCHED.format(root=str(ROOT), folder=str(folder), name=name))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        str(script),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.parametrize("name", ["plain", "accumulated", "informative"])
def test_two_processes_train_as_one_does_with_the_same_global_batch(tmp_path: Path, name: str) -> None:
    first, second = launched(tmp_path, name)
    (tmp_path / "alone").mkdir()
    alone = job(tmp_path / "alone", name)
    assert (first["world"], second["rank"]) == (2, 1)
    assert first["keep"] == second["keep"] == alone["keep"]
    assert first["values"] == second["values"]  # the same bits on both
    assert first["top1"] == pytest.approx(alone["top1"])
    assert first["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    for key, values in alone["values"].items():
        assert first["values"][key] == pytest.approx(values, rel=2e-3, abs=2e-4), key


def test_two_processes_that_are_stopped_go_on_with_the_same_bits(tmp_path: Path) -> None:
    for name in ("plain", "stopped"):
        (tmp_path / name).mkdir()
    whole, _ = launched(tmp_path / "plain", "plain")
    again, other = launched(tmp_path / "stopped", "stopped")
    assert again["resumed"] == 9
    assert again["values"] == other["values"] == whole["values"]


def test_each_process_gets_its_part_of_every_batch_and_all_parts_make_the_batch() -> None:
    from halp_iee.train.tensors import TensorSplit

    split = TensorSplit(torch.arange(23.0).reshape(23, 1, 1, 1), torch.arange(23))
    for world in (1, 2, 3):
        for shuffle in (False, True):
            whole = [y.tolist() for _, y in split.batches(7, seed=3, shuffle=shuffle)]
            parts = [
                [y.tolist() for _, y in split.batches(7, seed=3, shuffle=shuffle, part=(k, world))]
                for k in range(world)
            ]
            for number, batch in enumerate(whole):
                joined = [label for k in range(world) for label in parts[k][number]]
                assert sorted(joined) == sorted(batch)


def test_more_processes_than_images_in_a_batch_are_refused(tiny_net, tiny_data, monkeypatch) -> None:
    monkeypatch.setattr(Processes, "here", classmethod(lambda cls: Processes(0, 9)))
    with pytest.raises(UsageError, match="9 processes"):
        fit(tiny_net(), tiny_data, Recipe(batch_size=8))


def test_alone_nothing_is_sent_and_errors_pass_through() -> None:
    alone = Processes()
    assert alone.total(1, 2.5) == (1, 2.5)
    assert alone.share("x") == "x"
    assert alone.gather(3) == [3]

    def refuse() -> None:
        raise TargetError("a", "b", "c")

    with pytest.raises(HalpError, match="a: b"):
        alone.once(refuse)
    with started() as processes:
        assert processes == alone


def test_batchnorm_with_shared_statistics_is_batchnorm(tmp_path: Path, monkeypatch) -> None:
    """With sums that come back as they are: forward, backward and running statistics are torch's."""
    import torch.distributed as dist

    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    torch.manual_seed(0)
    for plain in (nn.BatchNorm2d(5), nn.BatchNorm2d(5, momentum=None), nn.BatchNorm1d(5, affine=False)):
        x = torch.randn(6, 5, *((3, 3) if isinstance(plain, nn.BatchNorm2d) else ()), requires_grad=True)
        shared = type(plain)(5, momentum=plain.momentum, affine=plain.affine)
        out = []
        for module, processes in ((plain, Processes()), (shared, Processes(0, 2))):
            with shared_statistics(module, processes):
                for _ in range(2):
                    y = module(x)
                (gradient,) = torch.autograd.grad((y**3).sum(), x)
            assert type(module) is type(plain)
            out.append((y, gradient, *module.buffers(), module.eval()(x)))
        for one, two in zip(*out, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
