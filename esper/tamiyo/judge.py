"""The judge's statistics: is a kernel shown to help by more than it must?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Verdict", "judge", "spend"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the judge found; losses in nats.

    Attributes:
        loss_off: mean loss without the kernel.
        loss_on: mean loss with it.
        gain: mean of the paired differences, off - on.
        lower_bound: one-sided lower confidence bound of the gain.
        threshold: what the bound had to exceed.
        num_examples: pairs.
        kept: whether it did.
    """

    loss_off: float
    loss_on: float
    gain: float
    lower_bound: float
    threshold: float
    num_examples: int
    kept: bool


def judge(
    loss_off: Tensor, loss_on: Tensor, *, improvement_threshold: float, alpha: float, rent: float = 0.0
) -> Verdict:
    """Compare an example's loss with and without a kernel, over many examples.

    The bound is mean - t(1 - alpha, N - 1) * sd / sqrt(N) of the paired differences; the kernel is kept if it exceeds
    `(improvement_threshold + rent) * mean(loss_off)`. A loss that is not finite keeps nothing.

    Args:
        loss_off: losses without the kernel (N,), N >= 2.
        loss_on: losses with it (N,), in the same order.
        improvement_threshold: relative drop of the loss that must be exceeded.
        alpha: error probability of this verdict, in (0, 0.5).
        rent: relative drop asked for on top, for what the kernel costs.
    """
    from scipy.stats import t  # slow to import, and needed once a verdict

    difference = loss_off.double() - loss_on.double()
    n = len(difference)
    gain, deviation = float(difference.mean()), float(difference.std())
    lower_bound = gain - float(t.isf(alpha, n - 1)) * deviation / math.sqrt(n)
    threshold = (improvement_threshold + rent) * float(loss_off.double().mean())
    return Verdict(
        loss_off=float(loss_off.double().mean()),
        loss_on=float(loss_on.double().mean()),
        gain=gain,
        lower_bound=lower_bound,
        threshold=threshold,
        num_examples=n,
        kept=math.isfinite(lower_bound) and lower_bound > threshold,  # nan and inf compare false or are refused
    )


def spend(confidence: float, verdict_number: int) -> float:
    """Error probability that verdict number k (from 1) of a run may use: (1 - confidence) * 6 / (pi k)².

    Over all k they add up to 1 - confidence, however many verdicts there will be.
    """
    return (1.0 - confidence) * 6.0 / (math.pi * verdict_number) ** 2
