"""The events of a run: what `journal.jsonl` holds, one a line.

A line is the event's fields plus `kind` (the class's `kind`) and `time_unix_s`. Losses are mean cross-entropy in
nats, accuracies fractions in [0, 1], `step` counts optimizer updates done, `epoch` epochs finished or begun.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = [
    "MISSED",
    "CheckpointSaved",
    "Decided",
    "EpochEnded",
    "Event",
    "Forked",
    "Incubated",
    "Judged",
    "Notice",
    "RunEnded",
    "RunStarted",
    "Scored",
    "StateChanged",
    "StepLogged",
    "SurgeryEnded",
    "SurgeryIntended",
    "Validated",
]

MISSED = "missed: "
"""How the outcome of a decision begins that Tamiyo did not make in time, or could not make."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base: every event says at which step it happened."""

    kind: ClassVar[str] = ""
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A process took up the run; `resumed_from` names the checkpoint it went on from."""

    kind: ClassVar[str] = "run_started"
    run_name: str
    experiment_name: str
    total_steps: int
    total_epochs: int
    num_parameters: int
    num_macs: int
    num_sites: int
    device: str
    config: dict[str, Any]
    environment: dict[str, str | None]
    resumed_from: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLogged(Event):
    """Means over the last `logging.log_interval` steps; `memory_bytes` is the peak of the device (or process).

    On CUDA it is written up to one interval later, after events of later steps: nothing waits for its figures.
    """

    kind: ClassVar[str] = "step"
    epoch: int
    loss: float
    accuracy: float
    learning_rate: float
    grad_norm: float
    images_per_s: float
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated(Event):
    """One pass over the controller split, in or at the end of an epoch."""

    kind: ClassVar[str] = "validation"
    epoch: int
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnded(Event):
    """The fields of `TrainingMetrics`: an epoch's training means, and the controller split after it.

    What the end of the epoch brings (verdicts, decisions, growth) follows it.
    """

    kind: ClassVar[str] = "epoch"
    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    adaptations_applied: int
    epoch_time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored(Event):
    """What Tamiyo was shown: one dict of `HealthSignal` fields per site, and what measuring cost."""

    kind: ClassVar[str] = "signals"
    epoch: int
    signals: list[dict[str, Any]]
    cost_macs: int
    cost_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided(Event):
    """What Tamiyo asked for (the fields of `AdaptationDecision`), and whether it was done or why not."""

    kind: ClassVar[str] = "decision"
    epoch: int
    decision: dict[str, Any]
    applied: bool
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked(Event):
    """A short fork of the training with a module at a site; `loss` is that of the controller split at its end."""

    kind: ClassVar[str] = "fork"
    epoch: int
    site: str
    blueprint_id: str
    num_steps: int
    loss: float
    cost_macs: int
    cost_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Incubated(Event):
    """A module's incubation ended; `alpha` is what its output scale was multiplied with (1 without a search).

    `losses` are those of the controller split at the alphas tried (keys), empty without a search.
    """

    kind: ClassVar[str] = "incubation"
    epoch: int
    site: str
    graft_id: int
    method: str
    num_steps: int
    alpha: float
    losses: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged(Event):
    """A seed went from one lifecycle state to another; `checks_passed` are those of the gate between."""

    kind: ClassVar[str] = "state"
    epoch: int
    site: str
    blueprint_id: str | None
    old: str
    new: str
    reason: str
    checks_passed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SurgeryIntended(Event):
    """A change of the architecture is about to be made; without a `SurgeryEnded` behind it, it did not happen."""

    kind: ClassVar[str] = "surgery_intended"
    graft_id: int
    action: str
    site: str
    blueprint_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SurgeryEnded(Event):
    """A change of the architecture was committed, or undone (`committed` false, `error` says why)."""

    kind: ClassVar[str] = "surgery"
    graft_id: int
    action: str
    site: str
    blueprint_id: str
    committed: bool
    error: str | None
    num_parameters_before: int
    num_parameters_after: int
    num_macs_before: int
    num_macs_after: int
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged(Event):
    """The judge's verdict on a module, on the judge split.

    `gain` is the mean of loss(off) - loss(on) per example, `lower_bound` its one-sided lower confidence bound at
    `confidence`, `threshold` what the bound had to exceed: `improvement_threshold` plus the rent of what it costs,
    times `loss_off`.
    """

    kind: ClassVar[str] = "judgement"
    epoch: int
    graft_id: int
    site: str
    blueprint_id: str
    loss_off: float
    loss_on: float
    gain: float
    lower_bound: float
    threshold: float
    confidence: float
    num_examples: int
    kept: bool
    added_parameters: int
    added_macs: int
    cost_macs: int
    cost_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint is complete on disk; `path` is relative to the run folder where it lies inside it."""

    kind: ClassVar[str] = "checkpoint"
    epoch: int
    path: str
    is_best: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice(Event):
    """Something the user should know; `level` is a logging level name."""

    kind: ClassVar[str] = "notice"
    level: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """The process ended the run: `status` is finished, failed or interrupted.

    `result` (when finished) holds test_loss, test_accuracy, val_loss, val_accuracy, epochs, num_parameters_before,
    num_parameters, peak_parameters, num_macs_before, num_macs, num_grown, num_kept, total_macs (everything that was
    computed), its parts forward_macs, backward_macs, scoring_macs, forking_macs, incubation_macs and judging_macs,
    train_macs (forward and backward of the training steps), growth_macs (all others), discarded_macs (the part of
    train_macs that culled modules took), and seconds.
    """

    kind: ClassVar[str] = "run_ended"
    status: str
    reason: str
    result: dict[str, Any] | None
