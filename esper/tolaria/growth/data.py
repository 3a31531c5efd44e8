"""The data that growth uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["GrowthData"]

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthData:
    """The data that growth uses; each call starts a new pass.

    Attributes:
        controller: batches of the controller split, for scores.
        judge: batches of the judge split, for verdicts.
        norm_images: training batches for re-estimating batch-norm statistics.
        sample: a few training examples, for checking a new kernel.
        num_controller: examples in the controller split.
        num_judge: examples in the judge split.
        num_norm: examples in a pass of `norm_images`.
    """

    controller: Callable[[], Batches]
    judge: Callable[[], Batches]
    norm_images: Callable[[], Iterable[Tensor]]
    sample: Callable[[], Tensor]
    num_controller: int
    num_judge: int
    num_norm: int
