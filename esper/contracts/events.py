"""The events of a run, one line each in `journal.jsonl`.

A line has the event's fields, `kind` and `time_unix_s`. Losses are those of the task (cross-entropy: in nats), metrics
are by name, those with the unit % in [0, 1]; `step` counts optimizer steps done, `epoch` epochs finished or started.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from esper.contracts.metrics import ACCURACY, MetricInfo

__all__ = [
    "MISSED",
    "CheckpointSaved",
    "Decided",
    "EpochEnded",
    "Event",
    "Forked",
    "GrowthUndone",
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
"""Prefix of the outcome of a decision that Tamiyo could not make, or not in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base class; `step`: when it happened."""

    kind: ClassVar[str] = ""
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A process started or resumed the run.

    `resumed_from`: path of the checkpoint; `metrics`: the first one leads; `noun`: what an example is, in the plural;
    `data_digest`: of what the dataset held; `num_examples`: of each split; `skipped_macs`: of the backward pass of one
    example, not needed as layers are frozen.
    """

    kind: ClassVar[str] = "run_started"
    run_name: str
    experiment_name: str
    total_steps: int
    total_epochs: int
    steps_per_epoch: int
    num_parameters: int
    num_macs: int
    num_sites: int
    device: str
    config: dict[str, Any]
    environment: dict[str, str | None]
    resumed_from: str | None
    metrics: tuple[MetricInfo, ...] = (ACCURACY,)
    noun: str = "images"
    data_digest: str = ""
    num_examples: dict[str, int] = field(default_factory=dict)
    skipped_macs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLogged(Event):
    """Means over the last `logging.log_interval` steps; `memory_bytes` is the peak of the device (or process).

    `images_per_s` counts examples of any kind; of text, which has `tokens_per_s`, windows.

    On CUDA it is written up to one interval late, after events of later steps, as nothing waits for the values.
    """

    kind: ClassVar[str] = "step"
    epoch: int
    loss: float
    metrics: dict[str, float]
    learning_rate: float
    grad_norm: float
    images_per_s: float
    memory_bytes: int
    tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated(Event):
    """An evaluation on the controller split, during or at the end of an epoch."""

    kind: ClassVar[str] = "validation"
    epoch: int
    val_loss: float
    val_metrics: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnded(Event):
    """Metrics of an epoch (`esper.tolaria.TrainingMetrics`): means over its training steps, then the controller split.

    It comes before the verdicts, decisions and growth at the end of the epoch; `adaptations_applied` counts the
    decisions carried out just before it, which shaped the network that it trained. `epoch_time` is in seconds.
    """

    kind: ClassVar[str] = "epoch"
    epoch: int
    train_loss: float
    train_metrics: dict[str, float]
    val_loss: float
    val_metrics: dict[str, float]
    learning_rate: float
    adaptations_applied: int
    epoch_time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored(Event):
    """The signals given to Tamiyo: one dict of `HealthSignal` fields per site, and the cost of measuring them."""

    kind: ClassVar[str] = "signals"
    epoch: int
    signals: list[dict[str, Any]]
    cost_macs: int
    cost_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided(Event):
    """Tamiyo's decision (the fields of `AdaptationDecision`), and whether it was applied or why not."""

    kind: ClassVar[str] = "decision"
    epoch: int
    decision: dict[str, Any]
    applied: bool
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked(Event):
    """A short fork of the training with a module at a site; `loss` on the controller split at its end."""

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
    """A module's incubation ended; `alpha` is the factor applied to its output scale (1 without a search).

    `losses`: factor tried to loss on the controller split; empty without a search.
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
    """A seed went from one lifecycle state to another; `checks_passed`: checks of the gate between them."""

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
    """A change of the architecture is about to be made; it happened if a committed `SurgeryEnded` follows."""

    kind: ClassVar[str] = "surgery_intended"
    graft_id: int
    action: str
    site: str
    blueprint_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SurgeryEnded(Event):
    """A change of the architecture was committed, or rolled back because of `error` (`committed` is false)."""

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
    skipped_macs_after: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthUndone(Event):
    """The run went back to before a growth that a fault at step `fault_step` is put down to; it is refused from now on.

    `modules`: site and blueprint of each module of that growth; `reason`: the fault; `message`: all of it for the user.
    """

    kind: ClassVar[str] = "growth_undone"
    epoch: int
    modules: list[tuple[str, str]]
    fault_step: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged(Event):
    """The judge's verdict on a module, on the judge split.

    `gain` is the mean of loss(off) - loss(on) per example, `lower_bound` its one-sided lower confidence bound at
    `confidence`. The module is kept if the bound exceeds `threshold`: `loss_off` times the sum of
    `improvement_threshold` and the rent for the module's cost.
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
    """A checkpoint is complete on disk; `path` is relative if it is inside the run folder."""

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
    """The process ended the run; `status` is finished, failed or interrupted.

    `result` is null unless it finished, or only the test failed: then test_loss and the other test_* are null.

    `result` of a finished run: metrics (as in `RunStarted`), test_loss, val_loss, test_NAME and val_NAME of every
    metric (such as test_accuracy), epochs, num_parameters_before, num_parameters, peak_parameters, num_macs_before,
    num_macs, num_grown, num_kept, total_macs (all compute), its parts forward_macs, backward_macs, scoring_macs,
    forking_macs, incubation_macs and judging_macs, train_macs (forward and backward of the training steps), growth_macs
    (all others), discarded_macs (the part of train_macs spent on culled modules), and seconds.
    """

    kind: ClassVar[str] = "run_ended"
    status: str
    reason: str
    result: dict[str, Any] | None
