"""Tamiyo's decisions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Action", "AdaptationDecision"]


class Action(StrEnum):
    """What a decision requests."""

    NONE = "none"
    GERMINATE = "germinate"
    CULL = "cull"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptationDecision:
    """A requested change of the architecture, or none, with the reason.

    Attributes:
        should_adapt: whether a change is requested.
        target_layer: entry of `model.target_layers`, or a block below it; used when `site` is not given.
        blueprint_id: blueprint to grow; None is the first that fits.
        confidence: confidence of the policy, in [0, 1].
        reasoning: one sentence for the journal.
        site: exact site; None is the first free one in `target_layer`.
        alternatives: (site, blueprint) pairs that are nearly as good; short forks choose between them and `site`.
        action: defaults to germinate when `should_adapt`, else none.
    """

    should_adapt: bool
    target_layer: str | None = None
    blueprint_id: str | None = None
    confidence: float = 0.0
    reasoning: str = ""
    site: str | None = None
    action: Action | None = None
    alternatives: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.action is None:
            object.__setattr__(self, "action", Action.GERMINATE if self.should_adapt else Action.NONE)
        if self.should_adapt != (self.action is not Action.NONE):
            raise ValueError(f"should_adapt={self.should_adapt} contradicts action={self.action}")
        if self.should_adapt and self.site is None and self.target_layer is None:
            raise ValueError("a decision to adapt needs a site or a target_layer")
        if not 0.0 <= self.confidence <= 1.0:
            raise ValueError(f"confidence={self.confidence} must be in [0, 1]")
