"""Chase: global exploration with a soft memory bound, and channels that empty themselves are removed on the way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from halp_iee.errors import UsageError
from halp_iee.methods.sparse.base import Event, Gradient, SparseConfig, SparseMethod
from halp_iee.methods.sparse.channels import LiveChannels
from halp_iee.methods.sparse.exchange import Masks, drop, grow
from halp_iee.sparsity import metrics
from halp_iee.sparsity.layers import checked_sparsity
from halp_iee.sparsity.patterns import IndependentPattern
from halp_iee.sparsity.schedules import SCHEDULES, cubic

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph


@dataclass(frozen=True)
class ChaseConfig(SparseConfig):
    """Chase's settings. `every` is Delta T_p, between growth and pruning.

    Attributes:
        channel_sparsity: S_c, fraction of the removable channels that are removed by the end; 0: none.
        channel_every: Delta T, steps between removals of channels; None: as `every`.
        beta: a layer keeps at least `int(C (1 - S_c) beta)` channels.
        criterion: what a channel is worth: `umm`, `ws` or `mmm`.
        mutation: s_e over the density: what grows for a while, as a fraction of the live weights, at first.
            The paper gives no value; this is RigL's alpha.
        schedule: of that fraction to 0 at `stop`.
        prune_skip: whether channels that a residual connection carries are removed too.
    """

    distribution: object = "global"  # type: ignore[assignment]
    every: int = 1000
    stop: float = 130 / 160
    channel_sparsity: float = 0.0
    channel_every: int | None = None
    beta: float = 0.2
    criterion: Literal["umm", "ws", "mmm"] = "umm"
    mutation: float = 0.3
    schedule: str = "cosine"
    prune_skip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_sparsity(self.channel_sparsity, "the channels")
        if self.channel_every is not None and self.channel_every < 1:
            raise UsageError(
                f"channels cannot be removed every {self.channel_every} steps", "it must be 1 or more", "leave it out"
            )
        if not 0.0 <= self.beta <= 1.0 or not 0.0 <= self.mutation < 1.0:
            raise UsageError(
                "Chase's settings are off",
                f"beta = {self.beta:g} must lie in [0, 1] and mutation = {self.mutation:g} in [0, 1)",
                "leave them out",
            )
        if self.schedule not in ("cosine", "constant", "cubic") or self.distribution != "global":
            raise UsageError(
                "Chase's settings are off", "it ranks all layers together, on a cosine, constant or cubic schedule",
                "leave out distribution= and schedule=",
            )  # fmt: skip


class Chase(SparseMethod):
    """Unstructured sparse training that turns into channel sparsity.

    Every Delta T_p steps, over all layers in one ranking: the smallest |w| die until the sparsity is s_p
    (what had grown before has been trained meanwhile and competes), then the weights of largest |g| grow
    until it is s_p - s_e. Every Delta T steps the live channels of least UMM (mean |w| over the filter,
    zeros included) are removed until their fraction is S_t = S_c (1 - (1 - t / T)^3) (eq. 3); what they
    held is given back to the rest at the next growth. At `stop` the sparsities are s_p and S_c exactly.

    Removed channels never come back; with them go the weights that read them, and the normalisation's
    scale and shift, so that `slim()` computes the same as the masked network.

    Which channels: those with one producing and one consuming layer (in a bottleneck, conv1's and
    conv2's); with `prune_skip` all that the channel graph allows.

    Args:
        graph: the network's channel graph, `halp_iee.trace(model, images)`; needed if channels are removed.

    Source: Yin et al. 2023, section 3, algorithm 1. Its appendix F finds the global threshold by a feedback
    loop, whose two updates of the pruning threshold have their signs the wrong way round (a network that
    is too sparse would be pruned harder); the exact ranking needs no loop. See docs/methods/chase.md.
    """

    Config = ChaseConfig
    config: ChaseConfig

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        steps: int,
        graph: ChannelGraph | None = None,
        config: SparseConfig | None = None,
        on_event: Callable[[Event], None] | None = None,
        **settings: Any,
    ) -> None:
        self.graph = graph
        super().__init__(model, optimizer, steps=steps, config=config, on_event=on_event, **settings)

    def _set_up_budget(self) -> None:
        super()._set_up_budget()
        self.channels: LiveChannels | None = None
        self.allowed: Masks | None = None
        self._extra, self._owed = 0, 0
        if not self.config.channel_sparsity:
            return
        if self.graph is None:
            raise UsageError(
                "Chase cannot remove channels", "it was given no channel graph",
                "pass graph=halp_iee.trace(model, images), or channel_sparsity=0",
            )  # fmt: skip
        self.channels = LiveChannels(
            self.graph, self.model, most=self.config.channel_sparsity, beta=self.config.beta,
            criterion=self.config.criterion, skip=self.config.prune_skip,
        )  # fmt: skip

    def _first_masks(self) -> Masks:
        masks = super()._first_masks()
        self.allowed = {name: torch.ones_like(mask) for name, mask in masks.items()}
        return masks

    def share(self) -> float:
        """Fraction of the live weights that the next growth adds for a while."""
        if self.taken >= self.last_update:
            return 0.0
        return SCHEDULES[self.config.schedule](self.config.mutation, 0.0, self.taken / max(1, self.last_update))

    def _explores(self) -> bool:
        return self.taken % self.config.every == 0 or self.taken == self.last_update

    def _removes(self) -> bool:
        every = self.config.channel_every or self.config.every
        return self.channels is not None and (self.taken % every == 0 or self.taken == self.last_update)

    def _due(self) -> bool:
        return 0 < self.taken <= self.last_update and (self._explores() or self._removes())

    def _wanted_gradient(self) -> Gradient:
        return "all" if self._due() else "live"

    def expected(self) -> int:
        return self.total + self._extra - self._owed

    def channel_sparsity(self) -> float:
        """Fraction of the removable channels that is gone."""
        return 0.0 if self.channels is None else self.channels.sparsity

    def _update(self) -> None:
        assert self.allowed is not None
        masks = self.masks
        pruned = None
        explores = self._explores()
        if explores:
            surplus = max(0, self._live(masks) - self.total)
            pruned = masks = drop(self.pattern, masks, self.magnitudes(), surplus)
        if self._removes():
            masks = self._remove_channels(masks)
            pruned = masks if explores else pruned
        live = self._live(masks)
        if explores:
            assert isinstance(self.pattern, IndependentPattern)
            room = sum(int(self.pattern.available(mask, self.allowed[n]).sum()) for n, mask in masks.items())
            if live + room < self.total:
                raise UsageError(
                    "Chase cannot hold its sparsity",
                    f"{self.total} weights are to live and the channels that are left have {live + room}",
                    "ask for a lower channel_sparsity or a higher sparsity",
                )
            # The soft memory bound may be as soft as the channels that are left allow.
            self._extra = min(int(self.share() * self.total), live + room - self.total)
            self._owed = 0
            masks = grow(self.pattern, masks, self.gradients(), self.total + self._extra - live, self.allowed)
        else:
            self._owed += self._live(self.masks) - live
        self._install(masks, pruned=pruned, channel_sparsity=self.channel_sparsity())

    def _live(self, masks: metrics.MaskMap) -> int:
        return sum(self.pattern.count(mask) for mask in masks.values())

    def _remove_channels(self, masks: Masks) -> Masks:
        assert self.channels is not None
        assert self.allowed is not None
        now = cubic(0.0, self.config.channel_sparsity, self.taken / max(1, self.last_update))
        self.channels.remove_until(now, {layer.name: masks[layer.name] for layer in self.layers})
        for layer in self.layers:
            self.allowed[layer.name] = ~self.channels.dead(layer.parameter)
        return {name: mask & self.allowed[name] for name, mask in masks.items()}

    @torch.no_grad()
    def _hold_weights(self) -> None:
        super()._hold_weights()
        if self.channels is not None:
            self.channels.hold()

    def slim(self) -> nn.Module:
        """The network without the removed channels, as `ChannelGraph.slim` gives it and proves it.

        Raises:
            UsageError: it was set up without a channel graph.
        """
        if self.graph is None or self.channels is None:
            raise UsageError("there is nothing to slim", "no channels were to be removed", "set channel_sparsity=")
        dense = copy.deepcopy(self.graph.model)
        values = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        with torch.no_grad():
            for name, tensor in {**dict(dense.named_parameters()), **dict(dense.named_buffers())}.items():
                tensor.copy_(values[name])
        return replace(self.graph, model=dense).slim(self.channels.keep())

    # Checkpoints

    def _tensor_groups(self) -> dict[str, dict[str, Tensor]]:
        units = {} if self.channels is None else {name: torch.from_numpy(u) for name, u in self.channels.live.items()}
        return {**super()._tensor_groups(), "units": units}

    def _meta(self) -> dict[str, Any]:
        return {"extra": self._extra, "owed": self._owed}

    def _load(self, groups: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> None:
        super()._load(groups, meta)
        self._extra, self._owed = int(meta["extra"]), int(meta["owed"])
        if self.channels is not None:
            self.channels.load({name: units.numpy() for name, units in groups["units"].items()})
            self.allowed = {layer.name: ~self.channels.dead(layer.parameter) for layer in self.layers}
