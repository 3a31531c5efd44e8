"""The interface between a training run and Tamiyo, and Tamiyo in the run's own process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from esper.configs import MorphogeneticConfig
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.health import HealthSignal
from esper.tamiyo.policies import build_policy

__all__ = ["LocalTamiyo", "TamiyoClient"]


class TamiyoClient(Protocol):
    """Turns health signals into decisions."""

    def decide(self, signals: Sequence[HealthSignal]) -> AdaptationDecision:
        """Request at most one change, given the signals of all sites."""
        ...

    def close(self) -> None:
        """Release resources; safe to call twice."""
        ...


class LocalTamiyo:
    """Tamiyo in this process: the policy that the configuration names, deterministic.

    Raises:
        ConfigError: `policy=learned` and its file cannot be used.
    """

    def __init__(self, config: MorphogeneticConfig, *, rng_seed: int) -> None:
        self._policy = build_policy(config, rng_seed=rng_seed)

    def decide(self, signals: Sequence[HealthSignal]) -> AdaptationDecision:
        """Return the policy's decision."""
        return self._policy.decide(signals)

    def close(self) -> None:
        """Nothing to release."""
