"""Grow at fixed times, whatever the scores: a control that other policies have to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from esper.configs import MorphogeneticConfig
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.health import HealthSignal
from esper.tamiyo.policies.eligible import due_now, eligible, germinate, no_growth, num_born

__all__ = ["Schedule", "build"]


@dataclass(frozen=True)
class Schedule:
    """Grow one module at each of the shares of training in `schedule_at`, cycling through the free sites.

    Stateless: a share is due at the first consultation at or after it.
    """

    config: MorphogeneticConfig

    def decide(self, signals: Sequence[HealthSignal]) -> AdaptationDecision:
        """Grow if more shares have become due since the last consultation than modules were grown for them."""
        if not signals:
            return no_growth("no site")
        now = signals[0].progress
        num_earlier, due = due_now(signals[0], self.config)
        num_grown = num_born(signals)
        if num_grown >= due:
            return no_growth(f"nothing more is scheduled at {100 * now:.0f} % of training")
        candidates = eligible(signals, self.config)
        if not candidates:
            return no_growth("growth is scheduled, but no site is free")
        chosen = candidates[(num_earlier + num_grown) % len(candidates)]
        return germinate(
            chosen.signal,
            chosen.blueprints[0],
            confidence=1.0,
            reasoning=(
                f"scheduled: {100 * now:.0f} % of training is done, item {num_earlier + num_grown + 1} of schedule_at"
            ),
        )


def build(config: MorphogeneticConfig, rng_seed: int) -> Schedule:  # noqa: ARG001
    """Make the policy."""
    return Schedule(config)
