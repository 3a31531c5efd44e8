"""The judge's statistics: a one-sided paired test of whether a kernel lowers the loss by more than a threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from esper.devices import in_double

__all__ = ["Verdict", "judge", "significance_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of a test; losses in nats.

    Attributes:
        loss_off: mean loss without the kernel.
        loss_on: mean loss with it.
        gain: mean of the paired differences, off - on.
        lower_bound: one-sided lower confidence bound of the gain.
        threshold: minimum that the bound has to exceed.
        num_examples: pairs.
        kept: whether the bound exceeds the threshold.
    """

    loss_off: float
    loss_on: float
    gain: float
    lower_bound: float
    threshold: float
    num_examples: int
    kept: bool


def judge(
    loss_off: Tensor, loss_on: Tensor, *, improvement_threshold: float, significance: float, rent: float = 0.0
) -> Verdict:
    """Compare the losses of many examples with and without a kernel.

    The bound is mean - t(1 - significance, N - 1) * sd / sqrt(N) of the paired differences; the kernel is kept if the
    bound exceeds `(improvement_threshold + rent) * mean(loss_off)`. With a NaN or Inf loss it is not kept.

    Args:
        loss_off: losses without the kernel (N,), N >= 2.
        loss_on: losses with it (N,), in the same order.
        improvement_threshold: relative drop of the loss that must be exceeded.
        significance: error probability of this test, in (0, 0.5).
        rent: further relative drop required for the kernel's cost.
    """
    from scipy.stats import t  # here, because it is slow to import

    loss_off, loss_on = in_double(loss_off), in_double(loss_on)
    difference = loss_off - loss_on
    n = len(difference)
    gain, deviation = float(difference.mean()), float(difference.std())
    lower_bound = gain - float(t.isf(significance, n - 1)) * deviation / math.sqrt(n)
    threshold = (improvement_threshold + rent) * float(loss_off.mean())
    return Verdict(
        loss_off=float(loss_off.mean()),
        loss_on=float(loss_on.mean()),
        gain=gain,
        lower_bound=lower_bound,
        threshold=threshold,
        num_examples=n,
        kept=math.isfinite(lower_bound) and lower_bound > threshold,
    )


def significance_of(verdict_number: int, *, confidence: float) -> float:
    """Error probability of verdict number k (from 1) of a run: (1 - confidence) * 6 / (pi k)².

    The sum over all k is 1 - confidence, so the run's error is bounded however many verdicts there are.
    """
    return (1.0 - confidence) * 6.0 / (math.pi * verdict_number) ** 2
