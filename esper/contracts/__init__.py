"""Frozen dataclasses and enums shared by the packages: lifecycle, health, decisions, events, messages. stdlib only."""

from __future__ import annotations

from esper.contracts.decisions import Action, AdaptationDecision
from esper.contracts.health import HealthSignal
from esper.contracts.lifecycle import GateResult, SeedLifecycleState
from esper.contracts.recipe import Graft

__all__ = [
    "Action",
    "AdaptationDecision",
    "GateResult",
    "Graft",
    "HealthSignal",
    "SeedLifecycleState",
]
