"""A run on the bus: the events of its journal as messages, sent from a thread that follows it.

The journal is the spool: what could not be sent stays there. Decisions and outcomes are sent when the bus is back;
telemetry that has grown old is dropped and counted.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

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
from esper.errors import BusFullError, MessageError
from esper.oona.bus import Bus, message

__all__ = ["RunOnBus"]

_MAX_AGE_S = 30.0
"""Older telemetry says nothing about the present."""
_BATCH = 64
_TELEMETRY = (HealthReport, EpochReport)
_SIGNALS: TypeAdapter[tuple[HealthSignal, ...]] = TypeAdapter(tuple[HealthSignal, ...])
_DECISION: TypeAdapter[AdaptationDecision] = TypeAdapter(AdaptationDecision)


class RunOnBus:
    """Publisher of one run, brought up to date with the events of its journal, given from the first on.

    How far it has come is kept in `bus.json` in the run's folder, so nothing is left out when it begins anew; after a
    crash the last few messages may be sent twice, with the same `event_id`. A run that goes on from an earlier
    checkpoint sends what it does anew: those events are younger than the last one sent.

    Args:
        bus: where to publish.
        run_dir: the run's folder.

    Attributes:
        num_logged: messages that were sent.
        num_dropped: messages of telemetry that were not.
    """

    def __init__(self, bus: Bus, *, run_dir: Path) -> None:
        self._bus = bus
        self._run_id = run_id(run_dir)
        self._file = run_dir / "bus.json"
        self._seen = 0
        self._experiment = ""
        self._done, self._latest_unix_s, self.num_dropped = _noted(self._file)
        self.num_logged = 0

    def ingest(self, events: Iterable[dict[str, Any]]) -> None:
        """Publish the next events.

        Raises:
            BusError: the bus cannot be reached; what was sent is noted.
        """
        waiting: list[tuple[int, Message]] = []
        for event in events:
            if event["kind"] == "run_started":
                self._experiment = event["experiment_name"]
            self._seen += 1
            if self._seen <= self._done and event["time_unix_s"] <= self._latest_unix_s:
                continue
            self._done = min(self._done, self._seen - 1)
            self._latest_unix_s = max(self._latest_unix_s, event["time_unix_s"])
            if (one := self._message(event)) is not None:
                waiting.append((self._seen, one))
            if len(waiting) >= _BATCH:
                self._send(waiting)
                waiting = []
        if self._done < self._seen:
            self._send(waiting)

    def finish(self) -> None:
        """Nothing is left to do: the end of the run is an event too."""

    def close(self) -> None:
        """Let go of the bus."""
        self._bus.close()

    def _send(self, waiting: list[tuple[int, Message]]) -> None:
        try:
            self._bus.publish([one for _, one in waiting])
            self.num_logged += len(waiting)
        except (BusFullError, MessageError):  # one by one, so that only what has to be is lost
            for number, one in waiting:
                try:
                    self._send_if_possible(one)
                except BusFullError:
                    self._note(done=number - 1)
                    raise
        self._note(done=self._seen)

    def _note(self, *, done: int) -> None:
        self._done = done
        noted = {"done": self._done, "latest_unix_s": self._latest_unix_s, "dropped": self.num_dropped}
        aside = self._file.with_suffix(".new")
        aside.write_text(json.dumps(noted) + "\n")
        aside.replace(self._file)

    def _send_if_possible(self, one: Message) -> None:
        try:
            self._bus.publish([one])
            self.num_logged += 1
        except MessageError:
            self.num_dropped += 1
        except BusFullError:
            if not isinstance(one.payload, _TELEMETRY):
                raise
            self.num_dropped += 1

    def _message(self, event: Mapping[str, Any]) -> Message | None:
        """What an event says to others; None: nothing, or too late."""
        try:
            payload = self._payload(event)
        except (MessageError, KeyError, TypeError):  # a journal of another version
            self.num_dropped += 1
            return None
        if payload is None:
            return None
        if isinstance(payload, _TELEMETRY) and time.time() - event["time_unix_s"] > _MAX_AGE_S:
            self.num_dropped += 1
            return None
        named = f"{self._run_id}:{self._seen}:{event['time_unix_s']}"
        event_id = uuid.uuid5(uuid.NAMESPACE_URL, named).hex
        return message(_TOPICS[type(payload)], payload, sender=self._run_id, trace=self._run_id, event_id=event_id)

    def _payload(self, event: Mapping[str, Any]) -> Payload | None:
        """What an event says to others; None: nothing."""
        match event["kind"]:
            case "run_started":
                return self._run(event, status="running")
            case "run_ended":
                result = event["result"] or {}
                accuracy = result.get("test_accuracy")
                return self._run(event, status=event["status"], reason=event["reason"], test_accuracy=accuracy)
            case "epoch":
                return EpochReport(run_id=self._run_id, **_picked(event, EpochReport))
            case "signals":
                signals = _read(_SIGNALS, event["signals"])
                return HealthReport(run_id=self._run_id, epoch=event["epoch"], signals=signals)
            case "decision":
                asked = _read(_DECISION, event["decision"])
                rest = {name: event[name] for name in ("epoch", "step", "applied", "outcome")}
                return DecisionReport(run_id=self._run_id, decision=asked, **rest)
            case "judgement":
                return FieldReport(run_id=self._run_id, **_picked(event, FieldReport))
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


def _picked(event: Mapping[str, Any], payload: type) -> dict[str, Any]:
    """The fields of an event that a payload has."""
    return {name: event[name] for name in payload.__dataclass_fields__ if name in event and name != "kind"}  # type: ignore[attr-defined]


def _read(adapter: TypeAdapter[Any], content: Any) -> Any:
    try:
        return adapter.validate_json(json.dumps(content))
    except ValidationError as error:
        raise MessageError(f"the journal holds what this version cannot send: {error.error_count()} fields") from None


def _noted(file: Path) -> tuple[int, float, int]:
    """Events dealt with, the time of the last one, messages dropped."""
    try:
        content = json.loads(file.read_text())
        return int(content["done"]), float(content["latest_unix_s"]), int(content["dropped"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0.0, 0
