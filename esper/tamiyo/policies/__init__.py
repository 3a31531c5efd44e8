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
from esper.errors import ConfigError

__all__ = ["Policy", "build_policy"]


class Policy(Protocol):
    """Makes decisions; the same signals give the same decision."""

    def decide(self, signals: Sequence[HealthSignal]) -> AdaptationDecision:
        """Request at most one change, given the signals of all sites."""
        ...


def build_policy(config: MorphogeneticConfig, *, rng_seed: int) -> Policy:
    """Make the policy that the configuration names.

    Raises:
        ConfigError: a file that it needs cannot be used, or it is a plugin's and fails.
    """
    if config.policy in POLICIES:
        policy: Policy = importlib.import_module(POLICIES[config.policy].module).build(config, rng_seed)
        return policy
    setting = f"morphogenetic.policy={config.policy}"
    own: Policy = plugins.build(plugins.find("policy", config.policy), config, rng_seed, setting=setting)
    if not callable(getattr(own, "decide", None)):
        raise ConfigError(f"{setting}: gave a {type(own).__name__}; it must make an esper.tamiyo.policies.Policy")
    return own
