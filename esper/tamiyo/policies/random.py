"""Grow at random times and sites: a control that other policies have to beat."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from esper.configs import MorphogeneticConfig
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.health import HealthSignal
from esper.tamiyo.policies.eligible import eligible, germinate, must_wait, no_growth, num_born

__all__ = ["Random", "build"]


@dataclass(frozen=True)
class Random:
    """Grow a random blueprint at a random free site, with probability 1/2 per consultation.

    Copies grow at the shares of training in `schedule_at`, one random stage each.

    Stateless: draws depend only on rng_seed, epoch and the number of modules grown in the epoch.
    """

    config: MorphogeneticConfig
    rng_seed: int

    def decide(self, signals: Sequence[HealthSignal]) -> AdaptationDecision:
        """Draw whether to grow, then a site, then a blueprint."""
        if must_wait(signals, self.config):
            return no_growth("nothing more is scheduled now")
        candidates = eligible(signals, self.config)
        if not candidates:
            return no_growth("no site is free")
        # Seeded by a string: its hash is the same in every process, unlike that of hash().
        generator = random.Random(f"{self.rng_seed} {candidates[0].signal.epoch} {num_born(signals)}")
        if generator.random() < 0.5 and not self.config.follows_schedule:
            return no_growth("drawn: no growth")
        chosen = generator.choice(candidates)
        blueprint = generator.choice(chosen.blueprints)
        return germinate(chosen.signal, blueprint, confidence=0.5, reasoning=f"drawn from {len(candidates)} free sites")


def build(config: MorphogeneticConfig, rng_seed: int) -> Random:
    """Make the policy."""
    return Random(config, rng_seed)
