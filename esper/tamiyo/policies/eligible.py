"""Which sites are free to grow, and how decisions are made: shared by all policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from esper.configs import MorphogeneticConfig
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.health import HealthSignal
from esper.contracts.lifecycle import LIVE, SeedLifecycleState
from esper.costs import Cost
from esper.tezzeret import kernel_cost
from esper.urza import Blueprint, allowed

__all__ = ["Candidate", "due_now", "eligible", "germinate", "must_wait", "no_growth", "num_born", "num_due"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A free site and the blueprints that may grow there, the preferred first."""

    signal: HealthSignal
    blueprints: tuple[Blueprint, ...]


def eligible(signals: Sequence[HealthSignal], config: MorphogeneticConfig) -> list[Candidate]:
    """The sites where a module may germinate now, in forward order.

    A site needs a dormant seed with room for a kernel, a layer not adapted in the last `adaptation_cooldown` epochs,
    progress before `growth_until`, and a blueprint that fits, is allowed, was not undone here because of a fault, and
    is within the budget.
    """
    candidates = []
    for signal in signals:
        cooling = signal.last_adaptation_epoch is not None and (
            signal.epoch - signal.last_adaptation_epoch < config.adaptation_cooldown
        )
        free = signal.state is SeedLifecycleState.DORMANT and signal.has_room
        if not free or cooling or signal.progress >= config.growth_until:
            continue
        blueprints = allowed(config, signal.kind, signal.in_shape, signal.out_shape)
        affordable = tuple(b for b in blueprints if b.blueprint_id not in signal.refused and _is_affordable(b, signal))
        if affordable:
            candidates.append(Candidate(signal=signal, blueprints=affordable))
    return candidates


def _is_affordable(blueprint: Blueprint, signal: HealthSignal) -> bool:
    if blueprint.category == "copy":  # its cost depends on the network; None: there is nothing to copy here
        if signal.added_macs is None or signal.added_parameters is None:
            return False
        cost = Cost(num_parameters=signal.added_parameters, num_macs=signal.added_macs)
    elif signal.macs_left is None and signal.parameters_left is None:
        return True
    else:
        cost = kernel_cost(blueprint.blueprint_id, signal.in_shape, signal.out_shape)
    return (signal.macs_left is None or cost.num_macs <= signal.macs_left) and (
        signal.parameters_left is None or cost.num_parameters <= signal.parameters_left
    )


def num_born(signals: Sequence[HealthSignal]) -> int:
    """Modules germinated in this epoch so far."""
    return sum(signal.state in LIVE and signal.state_epoch == signal.epoch for signal in signals)


def num_due(
    progress: float, epoch: int, config: MorphogeneticConfig, *, last_consultation: float | None
) -> tuple[int, int]:
    """How many shares of `schedule_at` were due at earlier consultations, and how many became due since the last.

    Args:
        progress: fraction of training done.
        epoch: epochs finished.
        config: `schedule_at`.
        last_consultation: progress at the consultation before; None: unknown, epochs so far counted the same.
    """
    previous = last_consultation
    if previous is None:
        previous = progress * max(0, epoch - config.adaptation_frequency) / epoch if epoch else 0.0
    num_earlier = sum(share <= previous + 1e-9 for share in config.schedule_at)
    return num_earlier, sum(share <= progress + 1e-9 for share in config.schedule_at) - num_earlier


def due_now(signal: HealthSignal, config: MorphogeneticConfig) -> tuple[int, int]:
    """`num_due` at a signal's time."""
    return num_due(signal.progress, signal.epoch, config, last_consultation=signal.last_consultation)


def must_wait(signals: Sequence[HealthSignal], config: MorphogeneticConfig) -> bool:
    """Whether as much has grown as `schedule_at` allows now, for a policy that only chooses where to grow."""
    if not signals or not config.follows_schedule:
        return False
    return num_born(signals) >= due_now(signals[0], config)[1]


def germinate(
    signal: HealthSignal,
    blueprint: Blueprint,
    *,
    confidence: float,
    reasoning: str,
    alternatives: tuple[tuple[str, str], ...] = (),
) -> AdaptationDecision:
    """The decision to grow a blueprint at a site, or at one of the alternatives if forks choose it."""
    return AdaptationDecision(
        should_adapt=True,
        target_layer=signal.layer,
        site=signal.site,
        blueprint_id=blueprint.blueprint_id,
        confidence=confidence,
        reasoning=reasoning,
        alternatives=alternatives,
    )


def no_growth(reasoning: str) -> AdaptationDecision:
    """The decision to change nothing."""
    return AdaptationDecision(should_adapt=False, reasoning=reasoning)
