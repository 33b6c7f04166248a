"""Data, recipe, loop and checkpoint: the only part of the package where networks change."""

from halp_iee.train.data import load
from halp_iee.train.evaluation import Evaluation, evaluate
from halp_iee.train.events import EventLog
from halp_iee.train.loop import CHECKPOINT, fit
from halp_iee.train.method import Method
from halp_iee.train.optimizer import make_optimizer
from halp_iee.train.position import EpochRecord, History, Progress
from halp_iee.train.recipe import Recipe
from halp_iee.train.records import Data, Split

__all__ = [
    "CHECKPOINT", "Data", "EpochRecord", "Evaluation", "EventLog", "History", "Method", "Progress", "Recipe", "Split",
    "evaluate", "fit", "load", "make_optimizer",
]  # fmt: skip
