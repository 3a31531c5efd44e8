"""Grow nothing. Also the policy of a replayed run, which is built before the first step and never consults it."""

from __future__ import annotations

from collections.abc import Sequence

from esper.configs import MorphogeneticConfig
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.health import HealthSignal
from esper.tamiyo.policies.eligible import no_growth

__all__ = ["Never", "build"]


class Never:
    """Decide for no growth, whatever the signals."""

    def decide(self, signals: Sequence[HealthSignal]) -> AdaptationDecision:  # noqa: ARG002
        """The same decision every time."""
        return no_growth("policy never: sites are measured, nothing grows")


def build(config: MorphogeneticConfig, rng_seed: int) -> Never:  # noqa: ARG001
    """Make the policy."""
    return Never()
