"""Which slot and which blueprint a decision refers to."""

from __future__ import annotations

from esper import urza
from esper.contracts.decisions import Action, AdaptationDecision
from esper.contracts.lifecycle import SeedLifecycleState
from esper.errors import SurgeryError
from esper.kasmina import MorphableModel, SeedSlot
from esper.tolaria.growth.lifecycle import Lifecycle

__all__ = ["first_blueprint", "resolve"]


def resolve(model: MorphableModel, decision: AdaptationDecision) -> SeedSlot:
    """The slot at a decision's site, or the first slot of its layer where the action is possible.

    Raises:
        SurgeryError: there is no such site or layer, or the action is possible at none of the layer's slots.
    """
    if decision.site is not None:
        return model.slot(decision.site)
    layer = decision.target_layer
    slots = [slot for slot in model.all_slots() if layer in (slot.site.layer, slot.site.block)]
    if not slots:
        layers = ", ".join(dict.fromkeys(slot.site.layer for slot in model.all_slots()))
        raise SurgeryError(f"no layer {layer!r}; this network may grow in: {layers or 'none'}")
    free = [slot for slot in slots if slot.is_live == (decision.action is Action.CULL)]
    if decision.action is Action.GERMINATE:
        free = [slot for slot in free if slot.state is SeedLifecycleState.DORMANT and slot.has_room]
    if not free:
        raise SurgeryError(f"no seed of layer {layer!r} can {decision.action} now")
    return free[0]


def first_blueprint(life: Lifecycle, slot: SeedSlot) -> str:
    """The preferred one of the blueprints allowed, and not refused, at a slot's site.

    Raises:
        SurgeryError: none fits.
    """
    site, refused = slot.site, life.refusals.at(slot.site.name)
    allowed = urza.allowed(life.config, site.kind, site.in_shape, site.out_shape)
    names = [blueprint.blueprint_id for blueprint in allowed if blueprint.blueprint_id not in refused]
    if not names:
        raise SurgeryError(f"no allowed blueprint fits site {site.name!r}")
    return names[0]
