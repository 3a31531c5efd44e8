"""Growth that was undone because of a fault, and is not tried again in the run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from esper.contracts.recipe import Graft
from esper.errors import SurgeryError
from esper.kasmina import MorphableModel

__all__ = ["MAX_RETURNS", "Refusals", "on_trial"]

MAX_RETURNS = 3
"""How often a run goes back to before a growth."""


@dataclass(kw_only=True)
class Refusals:
    """What is not to grow again, saved in checkpoints.

    Attributes:
        reasons: by site and blueprint, why it was undone.
        num_returns: how often the run went back to before a growth.
    """

    reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    num_returns: int = 0

    def at(self, site: str) -> tuple[str, ...]:
        """The blueprints that are refused at a site."""
        return tuple(blueprint_id for refused, blueprint_id in self.reasons if refused == site)

    def add(self, grafts: Iterable[Graft], reason: str) -> None:
        """Refuse modules from now on."""
        self.reasons |= {(graft.site, graft.blueprint_id): reason for graft in grafts}

    def require_none(self, site: str, blueprint_id: str) -> None:
        """Check that a blueprint may grow at a site.

        Raises:
            SurgeryError: it was undone there.
        """
        if reason := self.reasons.get((site, blueprint_id)):
            raise SurgeryError(f"{blueprint_id} at {site} was undone in this run ({reason}) and is not tried again")

    def state_dict(self) -> dict[str, Any]:
        """Everything, as JSON."""
        reasons = [[site, blueprint_id, reason] for (site, blueprint_id), reason in self.reasons.items()]
        return {"reasons": reasons, "num_returns": self.num_returns}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Refusals:
        """From what `state_dict` returned."""
        reasons = {(site, blueprint_id): reason for site, blueprint_id, reason in state["reasons"]}
        return cls(reasons=reasons, num_returns=state["num_returns"])


def on_trial(model: MorphableModel) -> list[Graft]:
    """The modules of the newest growth (all that one consultation grew) that are neither kept nor removed yet."""
    live = [slot.live_graft for slot in model.all_slots() if slot.is_live]
    newest = max((graft.born_step for graft in live), default=None)
    return [graft for graft in live if graft.born_step == newest]
