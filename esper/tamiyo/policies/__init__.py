"""Policies, one a file: stateless functions from signals to a decision. `esper.configs.morphogenetic` lists them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol

from esper import plugins
from esper.configs import MorphogeneticConfig
from esper.configs.morphogenetic import POLICIES
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.health import HealthSignal

__all__ = ["Policy", "build_policy"]


class Policy(Protocol):
    """Makes decisions; the same signals give the same decision."""

    def decide(self, signals: Sequence[HealthSignal]) -> AdaptationDecision:
        """Request at most one change, given the signals of all sites."""
        ...


def build_policy(config: MorphogeneticConfig, *, rng_seed: int) -> Policy:
    """Make the policy that the configuration names.

    Raises:
        ConfigError: a file that it needs cannot be used.
    """
    build = plugins.find("policy", config.policy) if config.policy not in POLICIES else None
    build = build or importlib.import_module(POLICIES[config.policy].module).build
    policy: Policy = build(config, rng_seed)
    return policy
