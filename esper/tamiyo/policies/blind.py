"""Policies that do not look at the measurements: the controls that any other policy has to beat."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from esper.configs import MorphogeneticConfig
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.health import HealthSignal
from esper.tamiyo.policies.eligible import eligible, germinate, nothing, num_born

__all__ = ["Never", "Random", "Schedule"]


@dataclass(frozen=True)
class Never:
    """Measure, and grow nothing."""

    def decide(self, signals: Sequence[HealthSignal]) -> AdaptationDecision:  # noqa: ARG002
        """Nothing."""
        return nothing("policy never: sites are measured, nothing grows")


@dataclass(frozen=True)
class Schedule:
    """Grow at fixed shares of training, going round the free sites in forward order.

    Stateless: a share is due at the first consultation at or past it.
    """

    config: MorphogeneticConfig

    def decide(self, signals: Sequence[HealthSignal]) -> AdaptationDecision:
        """Grow if a share has come due since the last consultation and is not served yet."""
        if not signals:
            return nothing("no site")
        now, epoch = signals[0].progress, signals[0].epoch
        before = now * max(0, epoch - self.config.adaptation_frequency) / epoch if epoch else 0.0
        passed = sum(share <= before + 1e-9 for share in self.config.schedule_at)
        due = sum(share <= now + 1e-9 for share in self.config.schedule_at) - passed
        served = num_born(signals)
        if served >= due:
            return nothing(f"nothing scheduled between {before:.0%} and {now:.0%} of training is left")
        candidates = eligible(signals, self.config)
        if not candidates:
            return nothing("growth is scheduled, but no site is free")
        chosen = candidates[(passed + served) % len(candidates)]
        return germinate(
            chosen.signal,
            chosen.blueprints[0],
            confidence=1.0,
            reasoning=f"scheduled: {now:.0%} of training is done, item {passed + served + 1} of schedule_at",
        )


@dataclass(frozen=True)
class Random:
    """Grow at a random free site a random blueprint, in every second consultation on average.

    The draw follows from (rng_seed, epoch, modules grown at the end of it), so it can be repeated.
    """

    config: MorphogeneticConfig
    rng_seed: int

    def decide(self, signals: Sequence[HealthSignal]) -> AdaptationDecision:
        """Toss a coin, then draw a site, then a blueprint."""
        candidates = eligible(signals, self.config)
        if not candidates:
            return nothing("no site is free")
        # A string is hashed by its content here, unlike by hash().
        draw = random.Random(f"{self.rng_seed} {candidates[0].signal.epoch} {num_born(signals)}")
        if draw.random() < 0.5:
            return nothing("the coin said no")
        chosen = draw.choice(candidates)
        blueprint = draw.choice(chosen.blueprints)
        return germinate(chosen.signal, blueprint, confidence=0.5, reasoning=f"drawn from {len(candidates)} free sites")
