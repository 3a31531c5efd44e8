"""The state of a run, read from its journal: start, end, and every module that grew."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esper.contracts.lifecycle import SeedLifecycleState
from esper.contracts.metrics import MetricInfo, metrics_of
from esper.costs import training_macs

__all__ = ["GrownModule", "History", "image_macs"]

_ENDS = (SeedLifecycleState.FOSSILIZED, SeedLifecycleState.CULLED)


@dataclass(kw_only=True)
class GrownModule:
    """A module that grew, from germination to verdict.

    Attributes:
        graft_id: running number of the germination in its run.
        site: e.g. `layer2.0:beside`.
        blueprint_id: e.g. `conv3x3`.
        step: optimizer steps done when it was attached.
        epoch: epochs finished then; None before the first `state` event.
        added_parameters: parameters it added to the network.
        added_macs: multiply-accumulates per example it added.
        state: lifecycle state; fossilized and culled are final.
        state_step: step at which it entered that state.
        state_epoch: epochs finished then.
        reason: why it entered that state.
        judgement: the `judgement` event; None if it was not judged.
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
        """Whether it is neither kept nor culled yet."""
        return self.state not in _ENDS

    @property
    def is_kept(self) -> bool:
        """Whether it became part of the network."""
        return self.state == SeedLifecycleState.FOSSILIZED

    @property
    def verdict(self) -> str:
        """`kept`, `culled`, or its current state."""
        return {"fossilized": "kept"}.get(self.state, str(self.state))


@dataclass(kw_only=True)
class History:
    """Summary of a journal's events, which are added one by one as dicts (the lines of `journal.jsonl`).

    Attributes:
        started: the last `run_started` event.
        ended: the `run_ended` event after it.
        resume_step: step of the newest checkpoint that the run can resume from; None without one.
        step: optimizer steps done.
        epochs: the `epoch` events.
        modules: every module that germinated, in order.
    """

    started: dict[str, Any] | None = None
    ended: dict[str, Any] | None = None
    resume_step: int | None = None
    step: int = 0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    modules: list[GrownModule] = field(default_factory=list)

    @classmethod
    def of(cls, events: Iterable[dict[str, Any]]) -> History:
        """The history of these events."""
        history = cls()
        for event in events:
            history.add(event)
        return history

    @property
    def summary(self) -> str:
        """Short text: how many modules grew and were kept."""
        if (self.started or {}).get("config", {}).get("morphogenetic", {}).get("policy") == "replay":
            return "trained a recorded network"
        num_grown, num_kept = len(self.modules), sum(module.is_kept for module in self.modules)
        if not num_grown:
            return "nothing grew"
        return f"grew {num_grown} module{'s' * (num_grown != 1)}, kept {num_kept}"

    @property
    def metrics(self) -> tuple[MetricInfo, ...]:
        """The metrics of the task; the first one leads."""
        return metrics_of(self.started)

    @property
    def headline(self) -> MetricInfo:
        """The metric that leads."""
        return self.metrics[0]

    @property
    def best(self) -> dict[str, Any] | None:
        """The `epoch` event with the lowest validation loss, the first of several; None before the first epoch."""
        return min(self.epochs, key=_val_loss, default=None)

    def add(self, event: dict[str, Any]) -> None:
        """Add the next event."""
        self.step = event["step"]
        match event["kind"]:
            case "run_started":
                self.started, self.ended = event, None
                if event["resumed_from"] is not None:
                    self.resume_step = event["step"]
            case "run_ended":
                self.ended = event
            case "epoch":
                self.epochs.append(event)
            case "checkpoint" if Path(event["path"]).name.startswith("step-"):
                # Not the event's step: the checkpoint was written while training went on.
                self.resume_step = int(Path(event["path"]).name.removeprefix("step-"))
            case "surgery" if event["committed"] and event["action"] == "germinate":
                self.modules.append(_germinated(event))
            case "judgement" if module := self._live(event["site"]):
                module.judgement = event
            case "state" if module := self._live(event["site"]):
                if module.epoch is None:
                    module.epoch = event["epoch"]
                module.state, module.reason = event["new"], event["reason"]
                module.state_step, module.state_epoch = event["step"], event["epoch"]

    def _live(self, site: str) -> GrownModule | None:
        return next((module for module in reversed(self.modules) if module.site == site and module.is_live), None)


def image_macs(event: Mapping[str, Any]) -> int:
    """MACs of training on one example from an event on, which is a `run_started` or a `surgery`."""
    after = "_after" if event["kind"] == "surgery" else ""
    return training_macs(1, event[f"num_macs{after}"], skipped=event.get(f"skipped_macs{after}", 0))


def _germinated(event: dict[str, Any]) -> GrownModule:
    return GrownModule(
        graft_id=event["graft_id"],
        site=event["site"],
        blueprint_id=event["blueprint_id"],
        step=event["step"],
        state_step=event["step"],
        added_parameters=event["num_parameters_after"] - event["num_parameters_before"],
        added_macs=event["num_macs_after"] - event["num_macs_before"],
    )


def _val_loss(event: dict[str, Any]) -> float:
    """Validation loss of an `epoch` event; inf if it is not finite, which a journal holds as null."""
    value = event["val_loss"]
    return math.inf if value is None or math.isnan(value) else float(value)
