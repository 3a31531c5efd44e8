"""What a line of `journal.jsonl` must be, so that those who read it need not check it again."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, Union

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, TypeAdapter

from esper.configs import TolariaConfig
from esper.configs.identity import with_defaults
from esper.contracts import events
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.health import HealthSignal
from esper.contracts.metrics import ACCURACY, MetricInfo, metrics_of
from esper.files import Count, Number, as_json, decoder, json_object

__all__ = ["EVENT", "RESULT"]

_UNKNOWN = "unknown"
_TIME = Annotated[float, Field(ge=0, le=1e11)]  # to the year 5138: `datetime` ends at 9999

_RESULT: Any = json_object(
    "Result",
    {
        **dict.fromkeys(("test_loss", "val_loss"), Number | None),
        "metrics": NotRequired[Annotated[list[as_json(MetricInfo)], Field(min_length=1)]],  # type: ignore[misc]
        **dict.fromkeys(("epochs", "num_parameters_before", "num_parameters", "peak_parameters"), Count),
        **dict.fromkeys(("num_macs_before", "num_macs", "num_grown", "num_kept"), Count),
        **dict.fromkeys(("train_macs", "growth_macs", "discarded_macs", "forward_macs", "backward_macs"), Count),
        **dict.fromkeys(("scoring_macs", "forking_macs", "incubation_macs", "judging_macs"), Count),
        "test_class_accuracy": NotRequired[dict[str, Number | None]],
        "test_confusion": NotRequired[list[list[Count]]],
        "total_macs": NotRequired[Count],  # not in the first journals
        "seconds": Annotated[float, Field(ge=0, allow_inf_nan=False)],
    },
)


def _require_metrics(result: dict[str, Any]) -> dict[str, Any]:
    for metric in metrics_of(result):
        for name in (f"test_{metric.name}", f"val_{metric.name}"):
            if not isinstance(result.get(name, ""), float | int | None) or isinstance(result[name], bool):
                raise ValueError(f"{name} is no number")
    return result


RESULT = Annotated[_RESULT, AfterValidator(_require_metrics)]
"""The result of a finished run; its metrics are numbers or null."""


def _require_result(event: dict[str, Any]) -> dict[str, Any]:
    if event["status"] == "finished" and event["result"] is None:
        raise ValueError("finished without a result")
    return event


_RENAMED = {"accuracy": "metrics", "train_accuracy": "train_metrics", "val_accuracy": "val_metrics"}
_CARRY_METRICS = (events.StepLogged, events.Validated, events.EpochEnded)


def _with_metrics(event: Any) -> Any:
    """An event of before there were tasks as it would be written now: its accuracies become mappings of metrics."""
    if not isinstance(event, dict):
        return event
    old = {name: event[name] for name in _RENAMED if name in event}
    kept = {name: value for name, value in event.items() if name not in old}
    return kept | {_RENAMED[name]: {ACCURACY.name: value} for name, value in old.items()}


_FIELDS: Mapping[str, Any] = {
    "step": Count,
    "epoch": Count,
    "config": Annotated[as_json(TolariaConfig), AfterValidator(with_defaults)],
    "steps_per_epoch": NotRequired[Count],  # not in 0.1.0
    "total_steps": Count,
    "total_epochs": Count,
    "num_parameters": Count,
    "num_macs": Count,
    "signals": list[as_json(HealthSignal)],  # type: ignore[misc]
    "decision": as_json(AdaptationDecision),
    "level": Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    "status": Literal["finished", "failed", "interrupted"],
    "result": RESULT | None,
}
"""Fields whose types in `contracts.events` do not say all."""


def _schema(cls: type[events.Event]) -> Any:
    schema = as_json(cls, **_FIELDS)
    fields = {**schema.__annotations__, "kind": Literal[cls.kind], "time_unix_s": _TIME}
    schema = json_object(cls.__name__, fields)
    if cls in _CARRY_METRICS:
        return Annotated[schema, BeforeValidator(_with_metrics)]
    return Annotated[schema, AfterValidator(_require_result)] if cls is events.RunEnded else schema


@functools.cache
def EVENT() -> TypeAdapter[dict[str, Any]]:  # noqa: N802
    """Decoder of an event. Of kinds that this version does not know, `kind`, `step` and `time_unix_s` are checked."""
    named = [getattr(events, name) for name in events.__all__]
    classes: list[type[events.Event]] = [cls for cls in named if isinstance(cls, type) and cls is not events.Event]
    kinds = {cls.kind for cls in classes}
    unknown = json_object("Unknown", {"kind": str, "step": Count, "time_unix_s": _TIME})

    def kind_of(event: Any) -> Any:
        kind = event.get("kind") if isinstance(event, dict) else None
        return kind if not isinstance(kind, str) or kind in kinds else _UNKNOWN

    members = [Annotated[_schema(cls), Tag(cls.kind)] for cls in classes] + [Annotated[unknown, Tag(_UNKNOWN)]]
    return decoder(Annotated[Union[tuple(members)], Discriminator(kind_of)])  # noqa: UP007
