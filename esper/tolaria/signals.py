"""Health signals: scores of all sites, put into the words that Tamiyo reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from torch import Tensor

from esper.contracts.health import HealthSignal
from esper.kasmina import MorphableModel
from esper.kasmina.scores import health, score_sites

__all__ = ["measure_signals"]


def measure_signals(
    model: MorphableModel,
    batches: Iterable[tuple[Tensor, Tensor]] | None,
    *,
    epoch: int,
    progress: float,
    last_adaptation: Mapping[str, int],
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
        macs_left: multiply-accumulates that growing may still add; None without a budget.
        parameters_left: parameters that it may still add; None without a budget.
    """
    slots = model.all_slots()
    scores = score_sites(model, batches) if batches is not None else {}
    health_of = health([(slot.site, scores[slot.site.name]) for slot in slots if slot.site.name in scores])
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
            macs_left=macs_left,
            parameters_left=parameters_left,
            **(dataclasses.asdict(scores[slot.site.name]) if slot.site.name in scores else {}),
        )
        for slot in slots
    ]
