"""Publishes a run on the bus: the events of its journal as messages.

The journal is the spool. While the bus is away, decisions and outcomes wait there and are sent later; telemetry older
than `_MAX_AGE_S` is dropped and counted.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from esper.configs.identity import run_id
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.health import HealthSignal
from esper.contracts.messages import (
    DecisionReport,
    EpochReport,
    FieldReport,
    HealthReport,
    Message,
    Payload,
    RunReport,
    TopicName,
)
from esper.contracts.metrics import metrics_of
from esper.errors import BusFullError, MessageError, RunError
from esper.files import Count, decoder, json_object, read_json, write_atomically
from esper.oona.codec import message
from esper.oona.redis import RedisBus

__all__ = ["RunPublisher"]

_MAX_AGE_S = 30.0
"""Telemetry older than this is dropped."""
_BATCH = 64
_TELEMETRY = (HealthReport, EpochReport)
_POSITION = decoder(
    json_object("Position", {"done": Count, "starts_unix_s": list[FiniteFloat], "dropped": Count}, extra="forbid")
)
_SIGNALS: TypeAdapter[tuple[HealthSignal, ...]] = TypeAdapter(tuple[HealthSignal, ...])
_DECISION: TypeAdapter[AdaptationDecision] = TypeAdapter(AdaptationDecision)


class RunPublisher:
    """Publisher of one run. It is given the journal's events in order, from the first on, also after a restart.

    The position is kept in the run folder's `bus.json`, so a restart continues from there; after a crash the last few
    messages may be sent twice, with the same `event_id`. A run resumed from an earlier checkpoint is recognised by its
    `run_started`, which was not sent before, and all that follows is sent, whatever time it says.

    Attributes:
        num_logged: messages sent.
        num_dropped: messages dropped.
    """

    def __init__(self, bus: RedisBus, *, run_dir: Path) -> None:
        self._bus = bus
        self._run_id = run_id(run_dir)
        self._file = run_dir / "bus.json"
        self._num_seen = 0
        self._experiment = ""
        self._num_done, self._starts, self.num_dropped = _load_position(self._file)
        self._read_at: float | None = None
        self.num_logged = 0

    def ingest(self, events: Iterable[dict[str, Any]]) -> None:
        """Publish the next events.

        Raises:
            BusError: the bus cannot be reached; the position is saved.
        """
        waiting: list[tuple[int, Message]] = []
        # What the last call did not see was written since, whatever the clock says.
        max_age_s = math.inf if self._read_at is None else time.monotonic() - self._read_at
        self._read_at = time.monotonic()
        for event in events:
            self._num_seen += 1
            if event["kind"] == "run_started":
                self._experiment = event["experiment_name"]
                if event["time_unix_s"] not in self._starts:
                    self._starts.append(event["time_unix_s"])
                    self._num_done = min(self._num_done, self._num_seen - 1)
            if self._num_seen <= self._num_done:
                continue
            if (message := self._message(event, max_age_s=max_age_s)) is not None:
                waiting.append((self._num_seen, message))
            if len(waiting) >= _BATCH:
                self._send(waiting)
                waiting = []
        if self._num_done < self._num_seen:
            self._send(waiting)

    def finish(self) -> None:
        """Does nothing: the end of the run is an event too."""

    def close(self) -> None:
        """Close the bus."""
        self._bus.close()

    def _send(self, waiting: list[tuple[int, Message]]) -> None:
        try:
            self._bus.publish([message for _, message in waiting])
            self.num_logged += len(waiting)
        except (BusFullError, MessageError):  # one by one, to drop as few as possible
            for number, message in waiting:
                try:
                    self._send_or_drop(message)
                except BusFullError:
                    self._save_position(num_done=number - 1)
                    raise
        self._save_position(num_done=self._num_seen)

    def _save_position(self, *, num_done: int) -> None:
        self._num_done = num_done
        position = {"done": self._num_done, "starts_unix_s": self._starts, "dropped": self.num_dropped}
        write_atomically(self._file, json.dumps(position) + "\n")

    def _send_or_drop(self, message: Message) -> None:
        try:
            self._bus.publish([message])
            self.num_logged += 1
        except MessageError:
            self.num_dropped += 1
        except BusFullError:
            if not isinstance(message.payload, _TELEMETRY):
                raise
            self.num_dropped += 1

    def _message(self, event: Mapping[str, Any], *, max_age_s: float) -> Message | None:
        """The message for an event; None if its kind is not published, or it is dropped."""
        try:
            payload = self._payload(event)
        except (MessageError, KeyError, TypeError):  # a journal of another version
            self.num_dropped += 1
            return None
        if payload is None:
            return None
        age_s = min(time.time() - event["time_unix_s"], max_age_s)
        if isinstance(payload, _TELEMETRY) and age_s > _MAX_AGE_S:
            self.num_dropped += 1
            return None
        name = f"{self._run_id}:{self._num_seen}:{event['time_unix_s']}"
        event_id = uuid.uuid5(uuid.NAMESPACE_URL, name).hex
        return message(_TOPICS[type(payload)], payload, sender=self._run_id, trace=self._run_id, event_id=event_id)

    def _payload(self, event: Mapping[str, Any]) -> Payload | None:
        """The payload for an event; None if its kind is not published."""
        match event["kind"]:
            case "run_started":
                return self._run(event, status="running")
            case "run_ended":
                result = event["result"] or {}
                named = [metric.name for metric in metrics_of(result)]
                tested = {name: result.get(f"test_{name}") for name in named} if result else None
                return self._run(event, status=event["status"], reason=event["reason"], test_metrics=tested)
            case "epoch":
                return EpochReport(run_id=self._run_id, **_fields(event, EpochReport))
            case "signals":
                signals = _read(_SIGNALS, event["signals"])
                return HealthReport(run_id=self._run_id, epoch=event["epoch"], signals=signals)
            case "decision":
                decision = _read(_DECISION, event["decision"])
                rest = {name: event[name] for name in ("epoch", "step", "applied", "outcome")}
                return DecisionReport(run_id=self._run_id, decision=decision, **rest)
            case "judgement":
                return FieldReport(run_id=self._run_id, **_fields(event, FieldReport))
        return None

    def _run(self, event: Mapping[str, Any], **fields: Any) -> RunReport:
        return RunReport(run_id=self._run_id, experiment_name=self._experiment, step=event["step"], **fields)


_TOPICS: dict[type, TopicName] = {
    HealthReport: TopicName.SEED_HEALTH,
    DecisionReport: TopicName.COMMANDS,
    EpochReport: TopicName.EPOCHS,
    FieldReport: TopicName.FIELD_REPORTS,
    RunReport: TopicName.RUNS,
}


def _fields(event: Mapping[str, Any], payload: type) -> dict[str, Any]:
    """The event's values for the fields of a payload class."""
    return {name: event[name] for name in payload.__dataclass_fields__ if name in event and name != "kind"}  # type: ignore[attr-defined]


def _read(adapter: TypeAdapter[Any], content: Any) -> Any:
    try:
        return adapter.validate_json(json.dumps(content))
    except ValidationError as error:
        raise MessageError(f"the journal is of another version: {error.error_count()} invalid fields") from None


def _load_position(file: Path) -> tuple[int, list[float], int]:
    """Number of events processed, times of the `run_started` among them, number of messages dropped."""
    try:
        content = read_json(file, _POSITION)
    except (FileNotFoundError, RunError):  # what is sent again has the same `event_id`
        return 0, [], 0
    return content["done"], content["starts_unix_s"], content["dropped"]
