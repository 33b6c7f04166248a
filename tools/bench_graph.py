"""Sweep the channel graph over every torchvision model and many timm families.

    python tools/bench_graph.py --out sweep.jsonl                       # all of torchvision
    python tools/bench_graph.py --out sweep.jsonl --suite timm          # one model of each timm family
    python tools/bench_graph.py --out sweep.jsonl --only resnet50 --against-torch-pruning --export
    python tools/bench_graph.py --out sweep.jsonl --report docs/results/graph_coverage.md

Each model is built with random weights, traced, slimmed to half of every group and to random
subsets, held against its masked self (``graph.slim`` proves that or raises), saved and reloaded, trained one
step, each model in a process of its own with a cap on its processor time. One JSON line a model; what is in the
file already is not run again unless ``--again``. With ``--export`` the half-slim network is exported to ONNX too;
rows of models that passed without it are completed. Where that fails the full network is exported as well, which
tells what the exporter cannot do from what slimming broke. timm and torch-pruning are used if they can be imported.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from graph_coverage import write_report
from graph_models import Case, timm_names, torchvision_names


def stir(model: nn.Module) -> None:
    """Random statistics, scales and shifts, so that no removed channel is zero by luck."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            for name in ("running_mean", "running_var", "weight", "bias"):
                tensor = getattr(module, name, None)
                if isinstance(tensor, Tensor) and tensor.ndim == 1 and tensor.is_floating_point():
                    drawn = torch.rand(tensor.shape, generator=random)
                    tensor.copy_(drawn - 0.5 if name in ("running_mean", "bias") else drawn + 0.5)


def loss_of(value: Any) -> Tensor:
    from halp_iee.graph.sandbox import tensors_in

    floats = [t for t in tensors_in(value) if t.is_floating_point() and t.requires_grad]
    return torch.stack([t.float().square().mean() for t in floats]).sum()


def train_step(case: Case, small: nn.Module) -> None:
    """One step of SGD in train mode.

    Raises:
        RuntimeError: no parameter received a gradient.
    """
    small.train()
    args, kwargs = case.train_inputs()
    loss_of(small(*args, **kwargs)).backward()
    if not any(p.grad is not None for p in small.parameters()):
        raise RuntimeError("no parameter received a gradient")
    torch.optim.SGD(small.parameters(), 1e-6).step()


def prunable_share(graph: Any) -> float:
    """Share of the parameters that some prunable group can make fewer."""
    free = np.array([group.prunable for group in graph.groups] + [False])
    total = reached = 0
    for name, parameter in graph.model.named_parameters():
        total += parameter.numel()
        axes = graph.axes.get(name, ())
        stays = 1
        for axis, size in enumerate(parameter.shape):
            units = axes[axis] if axis < len(axes) else None
            stays *= size if units is None else int((~free[units.group]).sum())
        reached += parameter.numel() - stays
    return reached / max(total, 1)


def frozen_of(graph: Any) -> list[dict[str, Any]]:
    rows = [g for g in graph.groups if not g.prunable and g.size > 1]
    return [{"group": g.name, "size": g.size, "reason": g.reason} for g in rows]


def export_both(small: nn.Module, model: nn.Module, inputs: Any) -> str:
    """ "ok", or why the slim network cannot be exported, and whether the full one can."""
    from halp_iee.export.onnx import export_onnx

    def why(network: nn.Module) -> str:
        with tempfile.TemporaryDirectory() as folder:
            try:
                export_onnx(network.eval(), inputs, Path(folder) / "network.onnx", metadata={})
            except Exception as error:
                return f"{type(error).__name__}: {str(error)[:300]}"
        return "ok"

    slim = why(small)
    if slim == "ok":
        return slim
    return f"{slim} [the full network: {why(model)}]"


def run_export(case: Case, say: Callable[..., None]) -> None:
    """Only the export of the network slimmed to half of every group."""
    import halp_iee

    torch.manual_seed(0)
    model = case.build().eval()
    stir(model)
    args, kwargs = case.inputs()
    say(at="export")
    graph = halp_iee.trace(model, kwargs or args)
    small = graph.slim({g.name: np.arange(0, g.size, 2) for g in graph.groups if g.prunable})
    del graph
    say(export=export_both(small, model, kwargs or args))


def run_case(case: Case, say: Callable[..., None], *, export: bool, peer: bool) -> None:
    """Everything about one model, told step by step so that a crash keeps what came before it."""
    import halp_iee
    from halp_iee.slim.build import disagreement, outputs

    torch.manual_seed(0)
    model = case.build().eval()
    stir(model)
    args, kwargs = case.inputs()
    say(parameters=sum(p.numel() for p in model.parameters()))
    began = time.perf_counter()
    graph = halp_iee.trace(model, kwargs or args)
    say(trace_seconds=round(time.perf_counter() - began, 3))
    free = [g for g in graph.groups if g.prunable]
    say(
        groups=len(graph.groups),
        prunable=len(free),
        units=sum(g.size for g in graph.groups),
        prunable_units=sum(g.size for g in free),
        frozen=frozen_of(graph),
        prunable_share=round(prunable_share(graph), 4),
        unknown=dict(graph.unknown),
    )
    say(at="slim half")
    began = time.perf_counter()
    small = graph.slim({g.name: np.arange(0, g.size, 2) for g in free})
    say(slim_seconds=round(time.perf_counter() - began, 3), small=sum(p.numel() for p in small.parameters()))
    passed = ["half"]
    say(passed=passed)
    say(at="slim random")
    for seed in range(2):
        random = np.random.default_rng(seed)
        keep = {g.name: random.choice(g.size, size=int(random.integers(1, g.size + 1)), replace=False) for g in free}
        graph.slim(keep)
    passed.append("random")
    say(at="save and load", passed=passed)
    with tempfile.TemporaryDirectory() as folder:
        reloaded = halp_iee.load(halp_iee.save(small, Path(folder) / "small.safetensors"), model)
    apart = disagreement(outputs(small, args, kwargs), outputs(reloaded, args, kwargs))
    if apart > 1:  # in units of what is tolerated: memory layouts may change the order of sums
        raise RuntimeError(f"the reloaded network differs: {apart:.3g}")
    del reloaded
    passed.append("reload")
    say(passed=passed)
    say(at="train step")
    train_step(case, small)
    passed.append("train")
    say(at="done", passed=passed)
    if export:
        say(at="export")
        say(export=export_both(small, model, kwargs or args), at="done")
    del small, graph
    if peer:
        say(**torch_pruning(case))


def torch_pruning(case: Case) -> dict[str, Any]:
    """The same by Torch-Pruning: seconds to analyse, seconds to prune half, and whether the result runs."""
    import torch_pruning as tp

    torch.manual_seed(0)
    model = case.build().eval()
    args, kwargs = case.inputs()
    before = sum(p.numel() for p in model.parameters())
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    result: dict[str, Any] = {}
    try:
        began = time.perf_counter()
        pruner = tp.pruner.MagnitudePruner(
            model, kwargs or args, importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.5,
            ignored_layers=last,
        )  # fmt: skip
        result["peer_analyse_seconds"] = round(time.perf_counter() - began, 3)
        began = time.perf_counter()
        pruner.step()
        result["peer_prune_seconds"] = round(time.perf_counter() - began, 3)
        with torch.no_grad():
            model(*args, **kwargs)
        shrunk = sum(p.numel() for p in model.parameters()) < before
        result["peer"] = "ok" if shrunk else "nothing removed"
    except Exception as error:
        result["peer"] = f"{type(error).__name__}: {str(error)[:200]}"
    return result


def child(case: Case, path: str, options: dict[str, bool], known: dict[str, Any] | None, cap_seconds: float) -> None:
    torch.set_num_threads(1)
    # Processor time: on a machine that is shared, or stopped for a while, the clock says little.
    resource.setrlimit(resource.RLIMIT_CPU, (int(cap_seconds), int(cap_seconds) + 5))
    record: dict[str, Any] = {"at": "build and trace"} if known is None else dict(known)

    def say(**found: Any) -> None:
        record.update(found)
        record["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        Path(path).write_text(json.dumps(record))

    try:
        if known is None:
            run_case(case, say, **options)
        else:
            run_export(case, say)
            say(at="done")
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        say(error=f"{type(error).__name__}: {str(error)[:500]} ({Path(last.filename).name}:{last.lineno})")


def measure(
    case: Case, options: dict[str, bool], cap_seconds: float, known: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Run one model in a process of its own.

    Args:
        known: its row, if only the export is missing.
    """
    context = multiprocessing.get_context("fork")  # torch is imported once, in this process
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "record.json")
        process = context.Process(target=child, args=(case, path, options, known, cap_seconds))
        began = time.perf_counter()
        process.start()
        process.join()
        try:
            record = json.loads(Path(path).read_text())
        except (OSError, ValueError):
            record = {"at": "build and trace"} if known is None else dict(known)
    record |= {"suite": case.suite, "name": case.name, "kind": case.kind}
    if case.family:
        record["family"] = case.family
    record["wall_seconds"] = round(time.perf_counter() - began, 2)
    if process.exitcode:
        late = process.exitcode == -signal.SIGXCPU
        what = f"not done within {cap_seconds:.0f} s" if late else f"the process ended with {process.exitcode}"
        if record.get("at") == "export":
            record["export"] = what
        else:
            record["error"] = f"{what}, at: {record.get('at')}"
    return record


def machine() -> dict[str, Any]:
    from importlib import metadata

    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    ) if Path("/proc/cpuinfo").exists() else platform.processor()  # fmt: skip
    versions = {}
    for name in ("torch", "torchvision", "timm", "torch-pruning", "halp-iee"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": 1, "versions": versions}


def read(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The last record of each model; a line cut off by a crash is passed over."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            found[row["suite"], row["name"]] = row
        except (ValueError, KeyError):
            continue
    return found


def cases(suite: str, only: Iterable[str]) -> list[Case]:
    names = torchvision_names() if suite == "torchvision" else timm_names()
    wanted = set(only)
    return [Case(suite, name) for name in names if not wanted or name in wanted]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, appended to")
    parser.add_argument("--suite", choices=["torchvision", "timm"], default="torchvision")
    parser.add_argument("--only", nargs="*", default=[], help="names; default all of the suite")
    parser.add_argument("--again", action="store_true", help="also what is in --out already")
    parser.add_argument("--cap", type=float, default=300, help="seconds of processor time for one model")
    parser.add_argument(
        "--budget", type=float, default=float("inf"), help="start no further model after so many seconds"
    )
    parser.add_argument("--export", action="store_true", help="export the slim network to ONNX as well")
    parser.add_argument("--against-torch-pruning", action="store_true")
    parser.add_argument("--report", type=Path, help="write the table from --out and stop")
    parser.add_argument("--note", default="", help="what the page is to say about how the rows were gathered")
    given = parser.parse_args()
    if given.report:
        write_report(list(read(given.out).values()), given.report, given.note)
        return 0
    torch.set_num_threads(1)
    done = read(given.out)
    began = time.perf_counter()
    about = machine()
    options = {"export": given.export, "peer": given.against_torch_pruning}
    for case in cases(given.suite, given.only):
        known = done.get((case.suite, case.name))
        if known is not None and not given.again:
            if not given.export or "export" in known or known.get("error"):
                continue
        else:
            known = None
        if time.perf_counter() - began > given.budget:
            print("the budget is spent; run again to go on")
            break
        record = measure(case, options, given.cap, known) | {"machine": about}
        with given.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        verdict = record.get("error") or f"{record['prunable']} of {record['groups']} groups"
        verdict += f", export: {record['export'][:200]}" if "export" in record else ""
        print(f"{case.name}: {verdict} [{record['wall_seconds']} s]", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
