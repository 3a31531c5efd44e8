"""The data that growth uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.build import Parts
from esper.data import FileSet
from esper.tolaria.state import TrainingState

__all__ = ["GrowthData", "growth_data"]

Batches = Iterable[tuple[Tensor, Tensor]]

_NORM_BATCHES = 20
"""Training batches for re-estimating batch-norm statistics."""
_NORM_IMAGES = 2048
"""Approximate limit of images in them if images are streamed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthData:
    """The data that growth uses; each call starts a new pass.

    Attributes:
        controller: batches of the controller split.
        scored: batches of the examples that sites are scored on.
        judge: batches of the judge split, for verdicts.
        norm_images: training batches for re-estimating batch-norm statistics.
        sample: a few training examples, for checking a new kernel.
        num_controller: examples in the controller split.
        num_scored: examples in a pass of `scored`.
        num_judge: examples in the judge split.
        num_norm: examples in a pass of `norm_images`.
    """

    controller: Callable[[], Batches]
    scored: Callable[[], Batches]
    judge: Callable[[], Batches]
    norm_images: Callable[[], Iterable[Tensor]]
    sample: Callable[[], Tensor]
    num_controller: int
    num_scored: int
    num_judge: int
    num_norm: int


def growth_data(built: Parts, state: TrainingState) -> GrowthData:
    """What growth uses of the parts of a run."""
    batch_size = built.loader.batch_size
    num_batches = min(_NORM_BATCHES, built.loader.num_batches)
    if isinstance(built.splits.train, FileSet):  # decoded while growth waits
        num_batches = min(num_batches, max(2, _NORM_IMAGES // batch_size))
    controller = scored = built.splits.controller
    limit = built.config.morphogenetic.score_examples
    if limit is not None and limit < len(controller):
        scored = controller[torch.linspace(0, len(controller) - 1, limit).long()]
    return GrowthData(
        controller=lambda: built.evaluation_batches(controller),
        scored=lambda: built.evaluation_batches(scored),
        judge=lambda: built.evaluation_batches(built.splits.judge),
        norm_images=lambda: built.loader.first_batches(state.epoch, num_batches),
        sample=lambda: next(built.loader.first_batches(state.epoch, 1))[:16],
        num_controller=len(controller),
        num_scored=len(scored),
        num_judge=len(built.splits.judge),
        num_norm=num_batches * batch_size,
    )
