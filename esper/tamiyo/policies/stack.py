"""Double the depth of every stage at fixed times by trained copies of its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from esper.configs import MorphogeneticConfig
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.health import HealthSignal
from esper.tamiyo.policies.eligible import due_now, eligible, germinate, no_growth

__all__ = ["Stack", "build"]


@dataclass(frozen=True)
class Stack:
    """At each share of training in `schedule_at`, copy the blocks of every stage behind them, all stages at once.

    Stateless: each consultation grows at the first site that still waits for its copies.
    Source: G_stack, arXiv:2405.15319.
    """

    config: MorphogeneticConfig

    def decide(self, signals: Sequence[HealthSignal]) -> AdaptationDecision:
        """Grow at the first free site that something is to be copied to."""
        if not signals or not due_now(signals[0], self.config)[1]:
            return no_growth("no doubling is due")
        candidates = eligible(signals, self.config)
        if not candidates:
            return no_growth("no stage is left to double")
        chosen = candidates[0]
        reasoning = f"scheduled: {100 * chosen.signal.progress:.0f} % of training is done, every stage doubles"
        if self.config.plan_reason is not None:
            reasoning = f"planned ({self.config.plan_reason}): {reasoning}"
        return germinate(chosen.signal, chosen.blueprints[0], confidence=1.0, reasoning=reasoning)


def build(config: MorphogeneticConfig, rng_seed: int) -> Stack:  # noqa: ARG001
    """Make the policy."""
    return Stack(config)
