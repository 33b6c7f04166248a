"""What a training run cost in FLOPs: counted as it runs, and the formulas of the IEE paper.

One convention throughout, the paper's (appendix, section 3): a backward pass costs twice its forward pass,
so a step on a network of forward FLOPs ζ costs 3ζ a sample. ζ_P is the sparse (or slim) network, ζ_D the
dense one. Optimizer, normalisation and data loading are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from halp_iee.errors import CheckpointError

Stage = Literal["dense", "teacher", "estimate", "improve", "explore", "descend", "train"]

STAGES: dict[str, tuple[float, float]] = {
    "dense": (0.0, 3.0),
    "teacher": (0.0, 1.0),
    "estimate": (3.0, 0.0),
    "improve": (3.0, 0.0),
    "explore": (2.0, 1.0),
    "descend": (3.0, 0.0),
    "train": (3.0, 0.0),
}
"""Stage -> (multiples of ζ_P, multiples of ζ_D) that one sample costs.

``estimate`` is Importance Estimation (H), ``improve`` Accuracy Improvement (J), ``explore`` Reactivate &
Explore (Q: the forward pass runs through the reactivated Θ_P too), ``train`` the sparse training after the
last update. ``descend`` is HALP on its way down, at the size that the network had; ``teacher`` is the dense
network's forward pass for distillation.
"""


@dataclass(frozen=True)
class StageCost:
    """Totals of one stage.

    Attributes:
        steps: optimizer steps.
        samples: samples seen.
        flops: floating-point operations, 2 a multiply-accumulate.
    """

    steps: int = 0
    samples: int = 0
    flops: float = 0.0


@dataclass(frozen=True)
class TrainingCost:
    """The running bill of one training run; ``add`` returns the longer bill.

    Attributes:
        dense_macs: forward MACs of the dense network for one sample.
        stages: what each stage has cost so far.
    """

    dense_macs: int
    stages: Mapping[str, StageCost] | None = None

    def add(self, stage: Stage, *, steps: int, batch: int, macs: int) -> TrainingCost:
        """Add ``steps`` steps of ``batch`` samples on a network with ``macs`` forward MACs a sample.

        For ``dense`` and ``teacher`` the network is the dense one, whatever ``macs`` says.
        """
        sparse, dense = STAGES[stage]
        per_sample = 2.0 * (sparse * macs + dense * self.dense_macs)
        before = self.per_stage.get(stage, StageCost())
        after = StageCost(
            before.steps + steps, before.samples + steps * batch, before.flops + per_sample * steps * batch
        )
        return replace(self, stages={**self.per_stage, stage: after})

    @property
    def per_stage(self) -> Mapping[str, StageCost]:
        return self.stages or {}

    @property
    def flops(self) -> float:
        return sum(cost.flops for cost in self.per_stage.values())

    @property
    def samples(self) -> int:
        return sum(cost.samples for cost in self.per_stage.values())

    def ratio(self, dense_samples: int | None = None) -> float:
        """Over training the dense network on ``dense_samples`` samples, as many as this run if not given."""
        samples = self.samples if dense_samples is None else dense_samples
        whole = 2.0 * 3.0 * self.dense_macs * samples
        return self.flops / whole if whole else 0.0

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint; ``from_json`` gives the same record back."""
        stages = {name: [cost.steps, cost.samples, cost.flops] for name, cost in self.per_stage.items()}
        return {"dense_macs": self.dense_macs, "stages": stages}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainingCost:
        """Raises:
        CheckpointError: it is not what ``to_json`` wrote.
        """
        try:
            stages = {
                str(name): StageCost(int(steps), int(samples), float(flops))
                for name, (steps, samples, flops) in data["stages"].items()
            }
            if not stages.keys() <= STAGES.keys():
                raise ValueError(f"unknown stage in {sorted(stages)}")
            return cls(int(data["dense_macs"]), stages)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                "The training cost in the checkpoint cannot be read", str(error), "Start the run anew"
            ) from error


def iee_flops_per_sample(
    sparse: float, dense: float, *, update_share: float, stages: tuple[float, float, float] = (1, 1, 1)
) -> float:
    """Average training FLOPs a sample of IEE.

    ``u ((H + J) 3 ζ_P + Q (2 ζ_P + ζ_D)) / (H + J + Q) + (1 - u) 3 ζ_P``

    Args:
        sparse: ζ_P, forward FLOPs of the sparse network, in any unit.
        dense: ζ_D, in the same unit.
        update_share: u, the part of training in which the structure is updated.
        stages: H, J, Q, or anything proportional to them.

    Source: IEE, appendix, section 3.
    """
    H, J, Q = stages
    updating = ((H + J) * 3 * sparse + Q * (2 * sparse + dense)) / (H + J + Q)
    return update_share * updating + (1 - update_share) * 3 * sparse


def iee_unstructured_ratio(sparse: float, dense: float) -> float:
    """Training cost over dense training, updates ending at 3/4: ``((11 ζ_P + ζ_D) / 4) / (3 ζ_D)``."""
    return iee_flops_per_sample(sparse, dense, update_share=3 / 4) / (3 * dense)


def iee_structured_ratio(
    sparse: float, dense: float, *, epochs: int = 130, update_epochs: int = 5, dense_epochs: int = 90
) -> float:
    """Training cost over dense training, updates ending early: ``(388.3 ζ_P + 1.7 ζ_D) / (90 · 3 ζ_D)``.

    Source: IEE, appendix, section 3. The paper's ratios (0.71 at 2.0 of 4.1 GFLOPs, 0.39 at 1.1) come out
    when 130 epochs of IEE are set against 90 epochs of dense training, which its text does not say. Pass
    ``dense_epochs=epochs`` for a comparison epoch by epoch.
    """
    per_sample = iee_flops_per_sample(sparse, dense, update_share=update_epochs / epochs)
    return epochs * per_sample / (dense_epochs * 3 * dense)


def rigl_flops_per_sample(sparse: float, dense: float, *, update_every: int) -> float:
    """RigL: ``(3 ζ_P ΔT + 2 ζ_P + ζ_D) / (ΔT + 1)``. The IEE appendix prints it without the first ΔT."""
    return (3 * sparse * update_every + 2 * sparse + dense) / (update_every + 1)
