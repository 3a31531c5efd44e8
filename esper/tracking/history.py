"""What a journal tells: how a run began and ended, and the fate of every module that grew in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from esper.contracts.lifecycle import SeedLifecycleState

__all__ = ["Fate", "History"]

_ENDS = (SeedLifecycleState.FOSSILIZED, SeedLifecycleState.CULLED)


@dataclass(kw_only=True)
class Fate:
    """One module, from its germination to the verdict.

    Attributes:
        graft_id: running number of the germination in its run.
        site: where it grew, e.g. `layer2.0:beside`.
        blueprint_id: what was built.
        step: optimizer steps done when it was attached.
        epoch: epochs finished then; None until the journal says.
        added_parameters: what it added to the network.
        added_macs: the same in multiply-accumulates per image.
        state: its lifecycle state; fossilized and culled are final.
        state_step: step at which it entered that state.
        state_epoch: epochs finished then.
        reason: why it entered that state.
        judgement: the `judgement` event, if it was judged.
    """

    graft_id: int
    site: str
    blueprint_id: str
    step: int
    added_parameters: int
    added_macs: int
    epoch: int | None = None
    state: str = SeedLifecycleState.GERMINATED
    state_step: int = 0
    state_epoch: int | None = None
    reason: str = ""
    judgement: dict[str, Any] | None = None

    @property
    def is_live(self) -> bool:
        """Whether the verdict is still out."""
        return self.state not in _ENDS

    @property
    def is_kept(self) -> bool:
        """Whether it became part of the network."""
        return self.state == SeedLifecycleState.FOSSILIZED

    @property
    def verdict(self) -> str:
        """`kept`, `culled`, or the state it is in."""
        return {"fossilized": "kept"}.get(self.state, str(self.state))


@dataclass(kw_only=True)
class History:
    """Events of a journal, taken in one by one, as dicts (the lines of `journal.jsonl`).

    Attributes:
        started: the last `run_started` event.
        ended: the `run_ended` event after it.
        resume_step: step of the newest checkpoint from which the run can go on; None without one.
        step: optimizer steps done.
        fates: every module that was germinated, in order.
    """

    started: dict[str, Any] | None = None
    ended: dict[str, Any] | None = None
    resume_step: int | None = None
    step: int = 0
    fates: list[Fate] = field(default_factory=list)

    @classmethod
    def of(cls, events: Iterable[dict[str, Any]]) -> History:
        """The history that these events make."""
        history = cls()
        for event in events:
            history.add(event)
        return history

    @property
    def summary(self) -> str:
        """What growing came to, in a few words."""
        if (self.started or {}).get("config", {}).get("morphogenetic", {}).get("policy") == "replay":
            return "trained a recorded network"
        num_grown, num_kept = len(self.fates), sum(fate.is_kept for fate in self.fates)
        if not num_grown:
            return "nothing grew"
        return f"grew {num_grown} module{'s' * (num_grown != 1)}, kept {num_kept}"

    def add(self, event: dict[str, Any]) -> None:
        """Take in the next event."""
        self.step = event["step"]
        match event["kind"]:
            case "run_started":
                self.started, self.ended = event, None
                if event["resumed_from"] is not None:
                    self.resume_step = event["step"]
            case "run_ended":
                self.ended = event
            case "checkpoint" if not event["is_best"]:
                self.resume_step = event["step"]
            case "surgery" if event["committed"] and event["action"] == "germinate":
                self.fates.append(_germinated(event))
            case "judgement" if fate := self._live(event["site"]):
                fate.judgement = event
            case "state" if fate := self._live(event["site"]):
                if fate.epoch is None:
                    fate.epoch = event["epoch"]
                fate.state, fate.reason = event["new"], event["reason"]
                fate.state_step, fate.state_epoch = event["step"], event["epoch"]

    def _live(self, site: str) -> Fate | None:
        return next((fate for fate in reversed(self.fates) if fate.site == site and fate.is_live), None)


def _germinated(event: dict[str, Any]) -> Fate:
    return Fate(
        graft_id=event["graft_id"],
        site=event["site"],
        blueprint_id=event["blueprint_id"],
        step=event["step"],
        state_step=event["step"],
        added_parameters=event["num_parameters_after"] - event["num_parameters_before"],
        added_macs=event["num_macs_after"] - event["num_macs_before"],
    )
