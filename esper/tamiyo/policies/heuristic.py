"""Grow where a site stands out from the others of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from esper.configs import MorphogeneticConfig
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.health import HealthSignal
from esper.tamiyo.policies.eligible import eligible, germinate, must_wait, no_growth

__all__ = ["Heuristic", "build"]


@dataclass(frozen=True)
class Heuristic:
    """Germinate at the free site with the lowest health, if it is at or below `health_threshold`.

    Health is a ratio of scores of one kind of site, so scores of different kinds are never compared. Confidence is
    1 - health. With `fork_steps`, the second-best site of the same kind is the alternative, and forks choose.
    Copies grow at the shares of training in `schedule_at`, one stage each.
    """

    config: MorphogeneticConfig

    def decide(self, signals: Sequence[HealthSignal]) -> AdaptationDecision:
        """Choose the site with the lowest health among those that were measured."""
        if must_wait(signals, self.config):
            return no_growth("nothing more is scheduled now")
        measured = sorted(
            (
                (candidate.signal.health, candidate)
                for candidate in eligible(signals, self.config)
                if candidate.signal.health is not None
            ),
            key=lambda pair: (pair[0], -_score(pair[1].signal, self.config.score_per)),  # health has an upper limit: 1
        )
        if not measured:
            return no_growth("no site is free, measured and within the budget")
        health, chosen = measured[0]
        threshold, site = self.config.health_threshold, chosen.signal.site
        if health > threshold:
            return no_growth(f"no site stands out: the least healthy, {site}, has {health:.2f}, above {threshold:g}")
        alternatives = [
            (other.signal.site, other.blueprints[0].blueprint_id)
            for _, other in measured[1:]
            if other.signal.kind == chosen.signal.kind
        ]
        return germinate(
            chosen.signal,
            chosen.blueprints[0],
            confidence=1.0 - health,
            reasoning=f"{site} stands out: health {health:.2f} is at or below {threshold:g}",
            alternatives=tuple(alternatives[:1]) if self.config.fork_steps else (),
        )


def _score(signal: HealthSignal, score_per: str) -> float:
    """The score that sites are compared by."""
    cost = {"site": None, "macs": signal.added_macs, "parameters": signal.added_parameters}[score_per]
    return (signal.score or 0.0) / max(1, cost or 1)


def build(config: MorphogeneticConfig, rng_seed: int) -> Heuristic:  # noqa: ARG001
    """Make the policy."""
    return Heuristic(config)
