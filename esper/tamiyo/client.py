"""How a training asks Tamiyo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from esper.configs import MorphogeneticConfig
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.health import HealthSignal
from esper.tamiyo.policies import Heuristic, Learned, Never, Random, Schedule, load_policy

__all__ = ["LocalTamiyo", "TamiyoClient"]


class TamiyoClient(Protocol):
    """Whoever answers signals with decisions."""

    def decide(self, signals: Sequence[HealthSignal]) -> AdaptationDecision:
        """Answer the signals of all sites with at most one requested change."""
        ...

    def close(self) -> None:
        """Let go of what it holds; safe to call twice."""
        ...


class LocalTamiyo:
    """Tamiyo in this process: the policy that the configuration names, deterministic.

    Raises:
        ConfigError: `policy=learned` and its file cannot be used.
    """

    def __init__(self, config: MorphogeneticConfig, *, rng_seed: int) -> None:
        self._policy: Never | Schedule | Random | Heuristic | Learned
        if config.policy in ("never", "replay"):
            self._policy = Never()
        elif config.policy == "schedule":
            self._policy = Schedule(config)
        elif config.policy == "random":
            self._policy = Random(config, rng_seed)
        elif config.policy == "learned":
            self._policy = load_policy(Path(config.tamiyo_policy_path or "").expanduser(), config)
        else:
            self._policy = Heuristic(config)

    def decide(self, signals: Sequence[HealthSignal]) -> AdaptationDecision:
        """Ask the policy."""
        return self._policy.decide(signals)

    def close(self) -> None:
        """Nothing is held."""
