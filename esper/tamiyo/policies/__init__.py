"""Policies: from signals to a decision, without state of their own."""

from __future__ import annotations

from esper.tamiyo.policies.blind import Never, Random, Schedule
from esper.tamiyo.policies.heuristic import Heuristic
from esper.tamiyo.policies.learned import FEATURES, SCHEMA, Learned, cost, features, load_policy

__all__ = [
    "FEATURES",
    "SCHEMA",
    "Heuristic",
    "Learned",
    "Never",
    "Random",
    "Schedule",
    "cost",
    "features",
    "load_policy",
]
