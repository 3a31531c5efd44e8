"""Messages on the bus: an envelope (`Message`) with one payload; each topic allows some kinds of payload.

All fields are declared: the decoder rejects unknown kinds, unknown fields and values of other types.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Literal

from esper.contracts.decisions import AdaptationDecision
from esper.contracts.health import HealthSignal

__all__ = [
    "KINDS",
    "BlueprintSubmitted",
    "Consultation",
    "DecisionMade",
    "DecisionReport",
    "EpochReport",
    "FieldReport",
    "HealthReport",
    "KernelReady",
    "Message",
    "Payload",
    "RunReport",
    "TopicName",
]

STRICT: dict[str, object] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
"""Pydantic's configuration for decoding a payload."""


class TopicName(StrEnum):
    """Topics, one stream each."""

    SEED_HEALTH = "telemetry.seed.health"
    COMMANDS = "control.kasmina.commands"
    EPOCHS = "system.events.epoch"
    RUNS = "system.events.run"
    FIELD_REPORTS = "innovation.field_reports"
    BLUEPRINT_SUBMITTED = "compilation.blueprint.submitted"
    KERNEL_READY = "compilation.kernel.ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """The signals a run measured at the end of an epoch and gave to its Tamiyo."""

    __pydantic_config__: ClassVar[Any] = STRICT
    kind: Literal["health"] = "health"
    run_id: str
    epoch: int
    signals: tuple[HealthSignal, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Consultation:
    """A request to the shared Tamiyo for a decision.

    Attributes:
        run_id: the run that sends it.
        epoch: epochs finished.
        nonce: identifies the request; the answer repeats it.
        deadline_s: seconds after which the run continues without an answer.
        policy: the fields of the run's `MorphogeneticConfig`.
        rng_seed: the run's random seed.
        signals: health of all sites.
        definitions: blueprints of the library that it may grow, in JSON.
    """

    __pydantic_config__: ClassVar[Any] = STRICT
    kind: Literal["consultation"] = "consultation"
    run_id: str
    epoch: int
    nonce: str
    deadline_s: float
    policy: dict[str, Any]
    rng_seed: int
    signals: tuple[HealthSignal, ...]
    definitions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionMade:
    """The shared Tamiyo's answer; `error`: why there is no decision."""

    __pydantic_config__: ClassVar[Any] = STRICT
    kind: Literal["decision"] = "decision"
    run_id: str
    epoch: int
    nonce: str
    decision: AdaptationDecision | None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionReport:
    """Whether a run applied a decision, or why not."""

    __pydantic_config__: ClassVar[Any] = STRICT
    kind: Literal["decision_report"] = "decision_report"
    run_id: str
    epoch: int
    step: int
    decision: AdaptationDecision
    applied: bool
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """The metrics of an epoch, by name as in the journal; `epoch_time` in seconds."""

    __pydantic_config__: ClassVar[Any] = STRICT
    kind: Literal["epoch"] = "epoch"
    run_id: str
    epoch: int
    step: int
    train_loss: float | None
    train_metrics: dict[str, float | None]
    val_loss: float | None
    val_metrics: dict[str, float | None]
    learning_rate: float | None
    adaptations_applied: int
    epoch_time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldReport:
    """The judge's verdict on a module: `gain` and its lower confidence bound in nats per example, and the cost."""

    __pydantic_config__: ClassVar[Any] = STRICT
    kind: Literal["field_report"] = "field_report"
    run_id: str
    epoch: int
    graft_id: int
    site: str
    blueprint_id: str
    gain: float | None
    lower_bound: float | None
    threshold: float | None
    kept: bool
    added_parameters: int
    added_macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A run started (`status` running) or ended; `test_metrics` by name, if it finished."""

    __pydantic_config__: ClassVar[Any] = STRICT
    kind: Literal["run"] = "run"
    run_id: str
    experiment_name: str
    step: int
    status: Literal["running", "finished", "failed", "interrupted"]
    reason: str = ""
    test_metrics: dict[str, float | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlueprintSubmitted:
    """A request to characterise a blueprint: one in the library, or a new one by its `definition` (JSON)."""

    __pydantic_config__: ClassVar[Any] = STRICT
    kind: Literal["blueprint_submitted"] = "blueprint_submitted"
    blueprint_id: str
    submitted_by: str
    definition: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelReady:
    """The forge has characterised a blueprint at a site shape; for the fields see `urza.KernelRecord`."""

    __pydantic_config__: ClassVar[Any] = STRICT
    kind: Literal["kernel_ready"] = "kernel_ready"
    blueprint_id: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    batch_size: int
    device: str
    torch_version: str
    status: str
    reason: str
    num_parameters: int | None
    num_macs: int | None
    memory_bytes: int | None
    forward_s: float | None
    backward_s: float | None
    compile_s: float | None
    compiled_forward_s: float | None
    compiled_backward_s: float | None


Payload = (
    HealthReport
    | Consultation
    | DecisionMade
    | DecisionReport
    | EpochReport
    | FieldReport
    | RunReport
    | BlueprintSubmitted
    | KernelReady
)

KINDS: dict[TopicName, tuple[type, ...]] = {
    TopicName.SEED_HEALTH: (HealthReport, Consultation),
    TopicName.COMMANDS: (DecisionMade, DecisionReport),
    TopicName.EPOCHS: (EpochReport,),
    TopicName.RUNS: (RunReport,),
    TopicName.FIELD_REPORTS: (FieldReport,),
    TopicName.BLUEPRINT_SUBMITTED: (BlueprintSubmitted,),
    TopicName.KERNEL_READY: (KernelReady,),
}
"""The payloads that each topic allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """The envelope.

    Attributes:
        version: version of this format.
        event_id: idempotency key: the same if an event is sent again.
        sender_id: the sender, e.g. a run's name.
        timestamp_unix_s: time by the sender's clock; informative only.
        trace_id: the same for related messages: the run's name.
        topic: the topic.
        payload: the content.
    """

    __pydantic_config__: ClassVar[Any] = STRICT
    version: Literal[1] = 1
    event_id: str
    sender_id: str
    timestamp_unix_s: float
    trace_id: str
    topic: TopicName
    payload: Payload
