"""Health signals: what Tamiyo sees of every site."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from esper import tezzeret
from esper.configs import MorphogeneticConfig
from esper.contracts.events import Scored
from esper.contracts.health import HealthSignal
from esper.costs import Cost, training_macs
from esper.errors import SurgeryError
from esper.kasmina import SeedSlot
from esper.kasmina.copies import copies_cost
from esper.kasmina.scores import SiteScore, health, score_sites, scoring_macs
from esper.tolaria.growth.lifecycle import Lifecycle
from esper.tolaria.growth.targets import first_blueprint
from esper.urza.copied import COPY

__all__ = ["measure_signals", "updated"]


def measure_signals(
    life: Lifecycle, *, progress: float, last_consultation: float | None, with_scores: bool
) -> list[HealthSignal]:
    """Measure every site on the controller split, or a part of it, and journal the signals; no tensor changes.

    Args:
        life: the seeds of the network.
        progress, last_consultation: see `HealthSignal`.
        with_scores: False: no image is read, and every score is None.

    Returns:
        A signal for each site, in forward order.
    """
    started = time.monotonic()
    slots = life.model.all_slots()
    scores = score_sites(life.model, life.data.scored(), life.step.task.losses) if with_scores else {}
    added = _added_costs(life)
    compared = _compared(scores, added, life.config)
    health_of = health([(slot.site, compared[slot.site.name]) for slot in slots if slot.site.name in compared])
    signals = [
        HealthSignal(
            site=slot.site.name,
            layer=slot.site.layer,
            kind=slot.site.kind,
            epoch=life.state.epoch,
            progress=progress,
            last_consultation=last_consultation,
            in_shape=slot.site.in_shape,
            out_shape=slot.site.out_shape,
            health=health_of.get(slot.site.name),
            added_macs=added[slot.site.name].num_macs if slot.site.name in added else None,
            added_parameters=added[slot.site.name].num_parameters if slot.site.name in added else None,
            **_seed_fields(life, slot),
            **(dataclasses.asdict(scores[slot.site.name]) if slot.site.name in scores else {}),
        )
        for slot in slots
    ]
    num_images = life.data.num_scored if with_scores else 0
    cost_macs = training_macs(num_images, life.running_macs) + num_images * scoring_macs(life.model)
    life.state.ledger.scoring_macs += cost_macs
    life.emit(
        Scored,
        epoch=life.state.epoch,
        signals=[dataclasses.asdict(signal) for signal in signals],
        cost_macs=cost_macs,
        cost_s=time.monotonic() - started,
    )
    return signals


def updated(life: Lifecycle, signal: HealthSignal) -> HealthSignal:
    """The signal after a change of the architecture: new seed state and budget, the same scores."""
    return dataclasses.replace(signal, **_seed_fields(life, life.model.slot(signal.site)))


def _seed_fields(life: Lifecycle, slot: SeedSlot) -> dict[str, Any]:
    """The fields of a signal that a change of the architecture changes."""
    config, host, now = life.config, life.host_cost, life.cost
    return {
        "state": slot.state,
        "state_epoch": slot.state_epoch,
        "num_kernels": len(slot.kept_grafts),
        "has_room": slot.has_room,
        "refused": life.refusals.at(slot.site.name),
        "last_adaptation_epoch": life.last_adaptation.get(slot.site.layer),
        "macs_left": _budget_left(config.max_added_macs, host.num_macs, now.num_macs),
        "parameters_left": _budget_left(config.max_added_parameters, host.num_parameters, now.num_parameters),
    }


def _budget_left(share: float | None, host: int, now: int) -> int | None:
    return None if share is None else int(share * host) - (now - host)


def _added_costs(life: Lifecycle) -> dict[str, Cost]:
    """Cost of the preferred blueprint at each site where one is allowed."""
    added = {}
    for slot in life.model.all_slots():
        with contextlib.suppress(SurgeryError):
            blueprint_id = first_blueprint(life, slot)
            if blueprint_id == COPY:
                added[slot.site.name] = copies_cost(life.model, slot, life.config.copy_order)
            else:
                added[slot.site.name] = tezzeret.kernel_cost(blueprint_id, slot.site.in_shape, slot.site.out_shape)
    return added


def _compared(
    scores: Mapping[str, SiteScore], added: Mapping[str, Cost], config: MorphogeneticConfig
) -> dict[str, SiteScore]:
    """The scores that are compared, by site; per cost, or where copies grow, of sites where something can be added."""
    if config.score_per == "site":
        return {site: score for site, score in scores.items() if site in added or not config.grows_copies}
    return {site: _per_cost(score, added[site], config.score_per) for site, score in scores.items() if site in added}


def _per_cost(score: SiteScore, added: Cost, score_per: str) -> SiteScore:
    """A score divided by the MACs or parameters that the preferred blueprint would add."""
    cost = max(1, added.num_macs if score_per == "macs" else added.num_parameters)
    error = None if score.score_error is None else score.score_error / cost
    return dataclasses.replace(score, score=score.score / cost, score_error=error)
