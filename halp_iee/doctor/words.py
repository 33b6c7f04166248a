"""A diagnosis in words."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from halp_iee.doctor.diagnosis import Diagnosis, Step, Trap
from halp_iee.report.text import ms, percent

_NAMED = 5
Told = TypeVar("Told", Step, Trap)


def headline(model: str, found: Diagnosis) -> str:
    share = percent(found.budget_ms / found.dense_ms)
    if not found.reachable:
        return f"{model}: {ms(found.budget_ms)} ({share} of dense) cannot be reached"
    return f"{model}: {ms(found.budget_ms)} ({share} of dense) can be reached"


def sentences(model: str, found: Diagnosis) -> list[str]:
    """One fact a sentence, the most important first."""
    kind = "MODELLED from a datasheet, not measured" if found.source == "modelled" else f"{found.source} layer by layer"
    said = [
        f"{model} takes {ms(found.dense_ms)} a call of {found.batch} on {found.device or 'the device'}: the sum of "
        f"{len(found.layers)} layers from a latency table, {kind}.",
        f"The floor is {ms(found.floor_ms)}, {percent(found.floor_ms / found.dense_ms)} of dense: no choice of widths "
        f"is predicted to be faster. {percent(max(0.0, found.fixed_ms) / found.dense_ms)} of dense depends on no width "
        "at all.",
    ]
    if not found.reachable:
        said.append(
            f"The target of {ms(found.budget_ms)} is under the floor. Ask for {found.floor_ms * 1.0001:.5g}ms or more, "
            "or take a network with fewer or cheaper layers."
        )
    elif found.latency_ms is not None and found.budget_ms < found.dense_ms:
        said.append(
            f"At {ms(found.latency_ms)} the best widths keep {percent(found.importance)} of the importance, proved "
            f"within {percent(found.gap, 2)} of the best possible, with {percent(_share_of_macs(found))} of the MACs."
        )
        said.append(_macs(found))
    top = found.layers[:_NAMED]
    if top:
        listed = ", ".join(f"{row.name} {percent(row.share)}" for row in top)
        said.append(f"The time goes to: {listed} (together {percent(sum(row.share for row in top))}).")
    for names, step in _alike(found.steps, lambda s: (s.size, s.drop, s.saves_ms)):
        dropped = "1 unit saves" if step.drop == 1 else f"{step.drop} units save"
        said.append(
            f"{names} just above a step: dropping {step.drop} of {step.size} units saves "
            f"{ms(step.saves_ms)}, where {dropped} {ms(step.average_ms)} on average."
        )
    for names, trap in _alike(found.traps, lambda t: (t.size, t.narrow, t.wide, t.loses_ms)):
        low, high = trap.narrow
        widths = f"{low}" if low == high else f"{low} to {high}"
        said.append(
            f"{names} in a trap at {widths} of {trap.size} units: slower than {trap.wide}, by up to "
            f"{ms(trap.loses_ms)} ({found.trapped[trap.group]} widths are such)."
        )
    if not found.steps and not found.traps:
        said.append("No group sits just above a step, and no width is slower than a wider one.")
    if found.frozen:
        name, size, reason = found.frozen[0]
        more = f", and {len(found.frozen) - 1} more" if len(found.frozen) > 1 else ""
        said.append(f"Cannot be pruned: {name} ({size} units: {reason}){more}.")
    if found.uncosted:
        said.append(f"{found.uncosted} operations have no latency in the table; calibration against whole networks "
                    "accounts for them when a run is made.")  # fmt: skip
    return said


def _share_of_macs(found: Diagnosis) -> float:
    return found.macs_m / found.macs_dense_m if found.macs_m and found.macs_dense_m else 0.0


def _macs(found: Diagnosis) -> str:
    rival = found.same_macs
    if rival is None:
        return "Pruning by MACs has no network of as many MACs to compare."
    relation = (
        f"{percent(rival.over)} over the target" if rival.over > 0 else f"{percent(-rival.over)} under the target"
    )
    said = (
        f"Pruning by MACs to as many MACs would take {ms(rival.latency_ms)}, {relation}, and keep "
        f"{percent(rival.importance)} of the importance."
    )
    meets = found.macs_to_meet
    if meets is None:
        return f"{said} However few MACs it leaves, it does not meet the target."
    return (
        f"{said} To meet the target it must remove {percent(1.0 - meets.macs_m / found.macs_dense_m)} of the MACs, and "
        f"then keeps {percent(meets.importance)} of the importance, where the latency-aware widths keep "
        f"{percent(found.importance)}."
    )


def _alike(found: Sequence[Told], key: Callable[[Told], Hashable]) -> list[tuple[str, Told]]:
    """The first few facts, each with the groups that it holds for."""
    bundles: dict[Hashable, list[Told]] = {}
    for one in found:
        bundles.setdefault(key(one), []).append(one)
    told = []
    for same in list(bundles.values())[:_NAMED]:
        more = f" and {len(same) - 1} alike are" if len(same) > 1 else " is"
        told.append((f"{same[0].group}{more}", same[0]))
    return told
