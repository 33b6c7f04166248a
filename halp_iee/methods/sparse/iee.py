"""IEE for single weights and N:M: exploit the active structure, explore all the rest, exchange a part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from halp_iee.errors import UsageError
from halp_iee.methods.sparse.base import Gradient, SparseConfig, SparseMethod
from halp_iee.methods.sparse.exchange import Masks, drop, grow
from halp_iee.methods.sparse.slots import reset_slots, slots_of
from halp_iee.sparsity.patterns import FanIn
from halp_iee.sparsity.schedules import exponential

Stage = Literal["importance", "accuracy", "explore", "done"]


@dataclass(frozen=True)
class IEEWeightsConfig(SparseConfig):
    """Settings of IEE on weights. `every` is not used: a cycle is H + J + Q steps.

    Attributes:
        H: steps of Importance Estimation in each cycle; None: a thirtieth of the update period, at most the
            paper's 150. A structure needs some steps to recover from what has been exchanged.
        J: steps of Accuracy Improvement; None: as H.
        Q: steps of Reactivate & Explore; None: a 300th of the update period, at most H. So the stages are the
            paper's 150 steps each wherever there is room for a hundred such cycles (60,000 steps of training); in
            a shorter training, which has few cycles, exploring does not eat what the structure needs to learn.
        omega_start: Omega^0 as a fraction of the live weights.
        omega_end: the last one. The paper gives none and its exponential schedule cannot reach 0.
        grow: `importance`, or `random` (ablation).
        reactivate: `mru`, most recently used values, or `zero` (ablation).
        unused: what a weight that has never lived has for its most recently used value: `zero`, or `initial`,
            the value that the network came with. The latter is right for a pretrained network, whose weights have
            all been used. The initial values of an untrained one say nothing of a weight's worth, and the
            largest of them outweigh whatever has been trained: they alone would be grown.
        freeze: whether Theta_K is frozen while Theta_P is explored; False is the ablation.
    """

    H: int | None = None
    J: int | None = None
    Q: int | None = None
    omega_start: float = 0.3
    omega_end: float = 0.02
    grow: Literal["importance", "random"] = "importance"
    reactivate: Literal["mru", "zero"] = "mru"
    unused: Literal["zero", "initial"] = "zero"
    freeze: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("H", 1), ("J", 0), ("Q", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"IEE cannot run with {name} = {value}", f"it needs {least} or more", f"raise {name}")
        choices = {"grow": ("importance", "random"), "reactivate": ("mru", "zero"), "unused": ("zero", "initial")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UsageError(
                    f"IEE has no {name} = {getattr(self, name)!r}",
                    f"there are {' and '.join(known)}",
                    f"take {known[0]}",
                )
        if not 0 < self.omega_end <= self.omega_start < 1:
            raise UsageError(
                "IEE's update budget is off",
                f"0 < omega_end <= omega_start < 1 must hold and they are {self.omega_end} and {self.omega_start}",
                "leave them out for 0.3 falling to 0.02",
            )


class IEEWeights(SparseMethod):
    """Per cycle t of H + J + Q steps, with Psi the number of live weights and Omega^t the update budget:

        H steps    train Theta_K
        Prune      Theta_K <- Theta_K - the Omega^t weights of least |w|       (eq. 2)
        J steps    train the new Theta_K
        Q steps    bring Theta_P back with its most recently used values and train it, Theta_K frozen  (eq. 3)
        Grow       Theta_K <- Theta_K + the Omega^t weights of Theta_P of largest |w|   (eq. 4)

    Cycles end at 3/4 of the training. With `uniform` or `erk` each layer exchanges its share; with `global`
    (the paper's Non-Uniform) one ranking over all layers decides. With `2:4` at most two of four neighbours
    live after Prune, and Grow fills every four up again.

    While Theta_P is explored everything that is not Theta_P is frozen bit for bit: the values and optimizer
    slots of Theta_K, biases and normalisation parameters, and the running statistics of normalisation
    layers. Momentum of what is woken, and of what is grown, starts at zero, and so do weights that have never
    lived (`unused`); the paper does not say.

    Source: Sun et al., section 3, algorithm 1 and appendix sections 2 and 5.1. Algorithm 1 taken literally
    prunes after H - 1 steps and needs J and Q above 0; the stages are explicit here. See docs/methods/iee_weights.md.
    """

    Config = IEEWeightsConfig
    config: IEEWeightsConfig

    def _set_up_budget(self) -> None:
        super()._set_up_budget()
        config = self.config
        if isinstance(self.pattern, FanIn):
            raise UsageError(
                "IEE cannot have a constant fan-in", "between Prune and Grow it does not hold",
                "take unstructured, N:M, channel or blocks, or the method srigl",
            )  # fmt: skip
        self.H = max(1, min(150, self.last_update // 30)) if config.H is None else config.H
        self.J = self.H if config.J is None else config.J
        self.Q = max(1, min(self.H, self.last_update // 300)) if config.Q is None else config.Q
        self.cycles = self.last_update // (self.H + self.J + self.Q)
        self.cycle = 0
        self.stage: Stage = "importance" if self.cycles else "done"
        self._left = self.H
        self._frozen: dict[str, Tensor] = {}
        self._exchanged: dict[str, int] | int = 0
        # Most recently used values of what does not live.
        parameters = dict(self.model.named_parameters())
        initial = {layer.name: parameters[layer.parameter].detach().clone() for layer in self.layers}
        self.store: Masks = initial
        if config.unused == "zero":
            self.store = {name: torch.zeros_like(value) for name, value in initial.items()}

    def expect(self, remaining: int) -> None:
        super().expect(remaining)
        if self.stage != "done":
            cycle = self.H + self.J + self.Q
            more = max(1, min(remaining, self.last_update - self.taken) // cycle)
            self.cycles = min(self.cycles, self.cycle + more)
            self._hurry(remaining)

    def _hurry(self, remaining: int) -> None:
        """Shorten the last cycle where fewer steps remain than it has: what was pruned is to be grown again."""
        if self.stage == "importance" and remaining < self._left + self.J + self.Q:
            self.stage, self._left = "done", 0  # nothing has been pruned yet
        elif self.stage == "accuracy" and remaining < self._left + self.Q:
            self._left = max(1, remaining - self.Q)
            self.Q = max(0, min(self.Q, remaining - self._left))
        elif self.stage == "explore":
            self._left = min(self._left, max(1, remaining))

    @property
    def done(self) -> bool:
        return self.stage == "done"

    @property
    def phase(self) -> str:
        return (
            "train"
            if self.stage == "done"
            else {"importance": "estimate", "accuracy": "improve"}.get(self.stage, self.stage)
        )

    def omega(self) -> float:
        """Omega^t over Psi."""
        a = self.cycle / max(1, self.cycles - 1)
        return exponential(self.config.omega_start, self.config.omega_end, a)

    def _due(self) -> bool:
        return False  # everything happens between steps

    def _update(self) -> None:
        raise AssertionError("IEE's stages change after steps")

    def _wanted_gradient(self) -> Gradient:
        if self.stage != "explore":
            return "live"
        return "dead" if self.config.freeze else "all"

    def expected(self) -> dict[str, int] | int:
        if isinstance(self._exchanged, int):
            whole = super().expected()
            return whole - self._exchanged if isinstance(whole, int) else whole
        return {name: atoms - self._exchanged[name] for name, atoms in self.budget.items()}

    def _before_step(self) -> None:
        if self.stage == "explore" and self.config.freeze:
            mine = {id(self.weight(layer.name)) for layer in self.layers}
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    if id(parameter) not in mine:
                        parameter.grad = None

    @torch.no_grad()
    def _after_step(self) -> None:
        if self.stage == "done":
            return
        if self.stage == "explore" and self.config.freeze:
            self._thaw()
        self._left -= 1
        while self._left <= 0 and self.stage != "done":
            self._end_of_stage()

    def _end_of_stage(self) -> None:
        if self.stage == "importance":
            self._prune()
            self.stage, self._left = "accuracy", self.J
        elif self.stage == "accuracy":
            self._wake()
            self.stage, self._left = "explore", self.Q
        else:
            self._grow_back()
            self.cycle += 1
            self.updates += 1
            finished = self.cycle >= self.cycles
            self.stage, self._left = ("done", 0) if finished else ("importance", self.H)

    def _prune(self) -> None:
        counts = self.fraction(self.omega())
        for name, weight in self._weights():  # what is dropped now has been used most recently
            self.store[name] = torch.where(self.masks[name], weight, self.store[name])
        pruned = drop(self.pattern, self.masks, self.magnitudes(), counts)
        self._exchanged = counts
        self._install(pruned, pruned=pruned, kind="prune", cycle=self.cycle)

    def _wake(self) -> None:
        if self.Q == 0:
            return
        self._frozen = self._snapshot()
        for name, weight in self._weights():
            if self.config.reactivate == "mru":
                weight.copy_(torch.where(self.masks[name], weight, self.store[name]))
            reset_slots(self.optimizer, weight, ~self.masks[name])

    def _grow_back(self) -> None:
        if self.config.freeze:
            self._thaw(buffers=True)
        if self.Q:
            for name, weight in self._weights():
                self.store[name] = torch.where(self.masks[name], self.store[name], weight)
        important = {name: value.abs() for name, value in self.store.items()}
        scores = important if self.config.grow == "importance" else self.random_scores(salt=1)
        masks = grow(self.pattern, self.masks, scores, self._exchanged)
        if self.Q == 0 and self.config.reactivate == "mru":
            for name, weight in self._weights():
                weight.copy_(torch.where(self.masks[name], weight, self.store[name]))
        self._exchanged = dict.fromkeys(self.budget, 0) if isinstance(self._exchanged, dict) else 0
        self._frozen = {}
        self._install(masks, kind="grow", cycle=self.cycle)

    def _weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        for layer in self.layers:
            yield layer.name, self.weight(layer.name)

    def _hold_weights(self) -> None:
        if getattr(self, "stage", "done") != "explore":
            super()._hold_weights()

    # What stays frozen while Theta_P is explored

    def _snapshot(self) -> dict[str, Tensor]:
        """Values and slots of the sparse weights, and the buffers (BatchNorm's running statistics)."""
        frozen = {f"value/{name}": weight.detach().clone() for name, weight in self._weights()}
        for layer in self.layers:
            for slot, value in slots_of(self.optimizer, self.weight(layer.name)).items():
                frozen[f"slot/{layer.name}/{slot}"] = value.clone()
        return frozen | {f"buffer/{name}": buffer.clone() for name, buffer in self.model.named_buffers()}

    def _thaw(self, *, buffers: bool = False) -> None:
        """Put Theta_K's values and slots back; at the end of the stage the buffers too."""
        if not self._frozen:  # Q = 0: nothing was woken
            return
        for layer in self.layers:
            name, mask, weight = layer.name, self.masks[layer.name], self.weight(layer.name)
            weight.copy_(torch.where(mask, self._frozen[f"value/{name}"], weight))
            for slot, value in slots_of(self.optimizer, weight).items():
                before = self._frozen.get(f"slot/{name}/{slot}")
                value.copy_(torch.where(mask, torch.zeros_like(value) if before is None else before, value))
        if buffers:
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self._frozen[f"buffer/{name}"])

    @contextmanager
    def evaluation(self, model: nn.Module) -> Iterator[None]:
        """Within it Theta_K alone computes, with the statistics from before the exploration."""
        if self.stage != "explore":
            yield
            return
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        with torch.no_grad():
            before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
            for layer in self.layers:
                tensors[layer.parameter].mul_(self.masks[layer.name])
            if model is self.model:
                for name, buffer in model.named_buffers():
                    buffer.copy_(self._frozen[f"buffer/{name}"])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in tensors.items():
                    tensor.copy_(before[name])

    # Checkpoints

    def _tensor_groups(self) -> dict[str, dict[str, Tensor]]:
        return {**super()._tensor_groups(), "store": dict(self.store), "frozen": dict(self._frozen)}

    def _meta(self) -> dict[str, Any]:
        return {
            "stage": self.stage, "cycle": self.cycle, "cycles": self.cycles, "left": self._left,
            "exchanged": self._exchanged, "Q": self.Q,
        }  # fmt: skip

    def _load(self, groups: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> None:
        super()._load(groups, meta)
        self.store = self._there(groups["store"])
        self._frozen = {name: value.clone() for name, value in groups.get("frozen", {}).items()}
        self.stage, self.cycle, self._left = meta["stage"], meta["cycle"], meta["left"]
        self.cycles, self.Q = int(meta["cycles"]), int(meta["Q"])
        self._exchanged = meta["exchanged"]
