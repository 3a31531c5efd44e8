"""Health signals: scores of all sites, put into the words that Tamiyo reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from torch import Tensor

from esper.contracts.health import HealthSignal
from esper.costs import Cost
from esper.kasmina import MorphableModel
from esper.kasmina.scores import SiteScore, health, score_sites

__all__ = ["measure_signals"]


def measure_signals(
    model: MorphableModel,
    batches: Iterable[tuple[Tensor, Tensor]] | None,
    *,
    epoch: int,
    progress: float,
    last_adaptation: Mapping[str, int],
    added: Mapping[str, Cost],
    score_per: str,
    macs_left: int | None = None,
    parameters_left: int | None = None,
) -> list[HealthSignal]:
    """Measure every site on the controller split, in forward order.

    Args:
        model: the network; nothing of it changes.
        batches: normalised images and labels; None: nothing is measured, and every score is None.
        epoch: epochs finished.
        progress: fraction of training done.
        last_adaptation: epoch of the last adaptation by layer.
        added: what the preferred blueprint would add, by site; sites where nothing may grow are missing.
        score_per: what scores are divided by before sites are compared: site (nothing), macs or parameters.
        macs_left: multiply-accumulates that growing may still add; None without a budget.
        parameters_left: parameters that it may still add; None without a budget.
    """
    slots = model.all_slots()
    scores = score_sites(model, batches) if batches is not None else {}
    compared = {site: _per(score, added.get(site), score_per) for site, score in scores.items()}
    health_of = health([(slot.site, compared[slot.site.name]) for slot in slots if slot.site.name in compared])
    return [
        HealthSignal(
            site=slot.site.name,
            layer=slot.site.layer,
            kind=slot.site.kind,
            epoch=epoch,
            progress=progress,
            in_shape=slot.site.in_shape,
            out_shape=slot.site.out_shape,
            state=slot.state,
            state_epoch=slot.state_epoch,
            num_kernels=len(slot.kept_grafts),
            has_room=slot.has_room,
            last_adaptation_epoch=last_adaptation.get(slot.site.layer),
            health=health_of.get(slot.site.name),
            added_macs=added[slot.site.name].num_macs if slot.site.name in added else None,
            added_parameters=added[slot.site.name].num_parameters if slot.site.name in added else None,
            macs_left=macs_left,
            parameters_left=parameters_left,
            **(dataclasses.asdict(scores[slot.site.name]) if slot.site.name in scores else {}),
        )
        for slot in slots
    ]


def _per(score: SiteScore, added: Cost | None, score_per: str) -> SiteScore:
    """A score for each multiply-accumulate or parameter of what would grow."""
    if score_per == "site" or added is None:
        return score
    cost = max(1, added.num_macs if score_per == "macs" else added.num_parameters)
    error = None if score.score_error is None else score.score_error / cost
    return dataclasses.replace(score, score=score.score / cost, score_error=error)
