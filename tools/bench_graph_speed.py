"""Time to analyse and prune a network, beside Torch-Pruning.

    python tools/bench_graph_speed.py --out speed.jsonl                 # measure; what is in the file is not run again
    python tools/bench_graph_speed.py --out speed.jsonl --report docs/results/graph_speed.md

Both take the same fresh network with random weights and the same example input, and remove half of everything that
they find prunable: here `halp_iee.trace` and `ChannelGraph.slim`, with its proof (the masked and the slim network run
on the example input and on random ones, of half the height and width where the network takes them) and without; there
`MagnitudePruner` and its `step`. Each run is a process of its own, forked after everything is imported and both have
pruned one tiny network, with one thread; which of the two comes first alternates. The median of the runs is told. Needs
torchvision and torch-pruning.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bench_graph import machine, stir
from graph_models import Case

NAMES = (
    "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "mobilenet_v2", "mobilenet_v3_large", "mnasnet1_0",
    "efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf", "regnet_x_800mf", "densenet121", "densenet201",
    "googlenet", "inception_v3", "squeezenet1_1", "alexnet", "vgg11_bn", "convnext_tiny", "fcn_resnet50",
    "deeplabv3_resnet50", "lraspp_mobilenet_v3_large", "r3d_18", "shufflenet_v2_x1_0", "vit_b_16", "swin_t",
    "fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn",
)  # fmt: skip
"""One or two of each family of torchvision."""

CAP_S = 60.0
"""One run longer than this is ended; its time counts as this."""

LONG_S = 8.0
"""A network on which one run takes longer than this is run once."""


class Large(Case):
    """A model at the image size that it is made for."""

    @property
    def size(self) -> int:
        small = self.kind != "classification"
        return super().size if small else 299 if self.name == "inception_v3" else 224


def ours(case: Case) -> dict[str, float]:
    """Seconds to trace, to cut and to prove."""
    import numpy as np

    import halp_iee
    from halp_iee.graph.keep import checked
    from halp_iee.graph.sandbox import without_collection
    from halp_iee.slim.build import cut, prove

    model, args, kwargs = _fresh(case)
    began = time.perf_counter()
    graph = halp_iee.trace(model, kwargs or args)
    traced = time.perf_counter()
    keep = checked({g.name: np.arange(0, g.size, 2) for g in graph.groups if g.prunable}, graph.groups)
    with without_collection():  # as `slim` does it
        small = cut(graph, keep, model)
        done = time.perf_counter()
        prove(graph, keep, small, model)
        proved = time.perf_counter()
    return {
        "analyse_s": traced - began,
        "prune_s": done - traced,
        "prove_s": proved - done,
        "left": _parameters(small) / _parameters(model),
    }


def theirs(case: Case) -> dict[str, float]:
    """Seconds to analyse and to prune.

    Raises:
        RuntimeError: nothing was removed.
        Exception: whatever Torch-Pruning or the pruned network raises.
    """
    import torch_pruning as tp

    model, args, kwargs = _fresh(case)
    before = _parameters(model)
    heads = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    began = time.perf_counter()
    pruner = tp.pruner.MagnitudePruner(
        model, kwargs or args, importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.5,
        ignored_layers=heads,
    )  # fmt: skip
    analysed = time.perf_counter()
    pruner.step()
    done = time.perf_counter()
    with torch.no_grad():
        model(*args, **kwargs)
    if _parameters(model) == before:
        raise RuntimeError("nothing was removed")
    return {"analyse_s": analysed - began, "prune_s": done - analysed, "left": _parameters(model) / before}


TOOLS = {"ours": ours, "theirs": theirs}


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _fresh(case: Case) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    torch.manual_seed(0)
    model = case.build().eval()
    stir(model)
    return (model, *case.inputs())


def _child(tool: str, case: Case, path: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        found: dict[str, Any] = dict(TOOLS[tool](case))
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"}
    Path(path).write_text(json.dumps(found))


def once(tool: str, case: Case) -> dict[str, Any]:
    """One run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/found.json"
        process = multiprocessing.get_context("fork").Process(target=_child, args=(tool, case, path))
        process.start()
        process.join(CAP_S)
        if process.is_alive():
            process.kill()
            process.join()
            return {"error": f"not done within {CAP_S:.0f} s", "late": True}
        if not Path(path).exists():
            return {"error": f"the process ended with {process.exitcode}"}
        found: dict[str, Any] = json.loads(Path(path).read_text())
        return found


def measure(case: Case, runs: int) -> dict[str, Any]:
    """The medians of both tools, their order alternating."""
    rows: dict[str, list[dict[str, Any]]] = {tool: [] for tool in TOOLS}
    for number in range(runs):
        order = list(TOOLS) if number % 2 == 0 else list(reversed(TOOLS))
        for tool in order:
            before = rows[tool]
            if before and ("error" in before[0] or _total(before[0]) > LONG_S):
                continue
            before.append(once(tool, case))
    record: dict[str, Any] = {"name": case.name, "machine": machine()}
    for tool, found in rows.items():
        good = [row for row in found if "error" not in row]
        record[tool] = (
            {key: statistics.median(row[key] for row in good) for key in good[0]} | {"runs": len(good)}
            if good and len(good) == len(found)
            else next(row for row in found if "error" in row)
        )
    return record


def _total(row: dict[str, Any]) -> float:
    return sum(float(row.get(key, 0)) for key in ("analyse_s", "prune_s", "prove_s"))


def report(rows: list[dict[str, Any]], path: Path) -> None:
    """The table, with the geometric mean over what both can do."""
    both = [row for row in rows if "error" not in row["ours"] and "error" not in row["theirs"]]
    late = [row for row in rows if "error" not in row["ours"] and row["theirs"].get("late")]

    def mean(ratios: list[float]) -> float:
        return math.exp(statistics.fmean(math.log(one) for one in ratios)) if ratios else float("nan")

    def without(row: dict[str, Any]) -> float:
        return _total(row["ours"]) - float(row["ours"]["prove_s"])

    about = rows[-1]["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    proved = mean([_total(row["ours"]) / _total(row["theirs"]) for row in both])
    bare = mean([without(row) / _total(row["theirs"]) for row in both])
    lines = [
        "# Time to analyse and prune, beside Torch-Pruning",
        "",
        "Written by `tools/bench_graph_speed.py`; how it measures is said there.",
        "",
        f"Machine: {about['cpu']}, {about['cores']} cores, one thread used. {versions}.",
        "",
        f"- Networks tried: {len(rows)}. Done here: {sum('error' not in row['ours'] for row in rows)}; "
        f"by Torch-Pruning: {sum('error' not in row['theirs'] for row in rows)}.",
        f"- Seconds here over seconds there, geometric mean over the {len(both)} that both do: "
        f"**{proved:.2f}** with the proof, {bare:.2f} without it.",
    ]
    if late:
        counted = mean(
            [_total(row["ours"]) / _total(row["theirs"]) for row in both]
            + [_total(row["ours"]) / CAP_S for row in late]
        )
        lines.append(
            f"- With the {len(late)} that Torch-Pruning does not finish within {CAP_S:.0f} s counted as {CAP_S:.0f} s: "
            f"{counted:.2f} with the proof."
        )
    lines += [
        "",
        "Seconds, medians; the share of parameters left shows that the two do not prune quite the same.",
        "",
        "| network | analyse | prune | prove | total | left | their analyse | their prune | total | left | ratio |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        mine, other = row["ours"], row["theirs"]
        left = (
            [f"{mine[key]:.3f}" for key in ("analyse_s", "prune_s", "prove_s")]
            + [f"{_total(mine):.3f}", f"{mine['left']:.0%}"]
            if "error" not in mine
            else [mine["error"].replace("|", "/"), "-", "-", "-", "-"]
        )
        right = (
            [f"{other['analyse_s']:.3f}", f"{other['prune_s']:.3f}", f"{_total(other):.3f}", f"{other['left']:.0%}"]
            if "error" not in other
            else [other["error"].replace("|", "/"), "-", "-", "-"]
        )
        ratio = f"{_total(mine) / _total(other):.2f}" if row in both else "-"
        lines.append(f"| {' | '.join([row['name'], *left, *right, ratio])} |")
    path.write_text("\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, appended to")
    parser.add_argument("--only", nargs="*", default=[], help="names; default one or two of each family")
    parser.add_argument("--again", action="store_true", help="also what is in --out already")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--smallest", action="store_true", help="the smallest inputs instead of those of ImageNet")
    parser.add_argument("--report", type=Path, help="write the table from --out and stop")
    given = parser.parse_args()
    known = {}
    for line in given.out.read_text().splitlines() if given.out.exists() else []:
        row = json.loads(line)
        known[row["name"]] = row
    if given.report:
        report([known[name] for name in known], given.report)
        return 0
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for tool in TOOLS.values():
        tool(Case("torchvision", "resnet18"))  # whatever is imported late is imported now
    # Else a collection of what this process holds falls into the one or the other's time, as chance will have it.
    gc.collect()
    gc.freeze()
    for name in given.only or NAMES:
        if name in known and not given.again:
            continue
        record = measure((Case if given.smallest else Large)("torchvision", name), given.runs)
        with given.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(name, record["ours"], record["theirs"], flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
