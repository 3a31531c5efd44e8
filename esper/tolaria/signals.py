"""Health signals: scores of all sites, put into the words that Tamiyo reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from esper.contracts.health import HealthSignal
from esper.kasmina import MorphableModel
from esper.kasmina.scores import health, score_sites

__all__ = ["measure_signals"]


def measure_signals(
    model: MorphableModel,
    batches: Iterable[tuple[Tensor, Tensor]],
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
        batches: normalised images and labels.
        epoch: epochs finished.
        progress: fraction of training done.
        last_adaptation: epoch of the last adaptation by layer.
        macs_left: multiply-accumulates that growing may still add; None without a budget.
        parameters_left: parameters that it may still add; None without a budget.
    """
    scores = score_sites(model, batches)
    slots = model.all_slots()
    health_of = health([(slot.site, scores[slot.site.name].score) for slot in slots])
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
            score=scores[slot.site.name].score,
            health=health_of[slot.site.name],
            activation_variance=scores[slot.site.name].activation_variance,
            gradient_norm=scores[slot.site.name].gradient_norm,
            macs_left=macs_left,
            parameters_left=parameters_left,
        )
        for slot in slots
    ]
