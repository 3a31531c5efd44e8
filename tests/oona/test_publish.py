"""Publishing a run's journal: in order, each event once; dropped telemetry is counted."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from esper.configs import RedisConfig
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.events import Decided, Event, Notice, RunEnded, Scored
from esper.contracts.messages import DecisionReport, FieldReport, HealthReport, Message, RunReport, TopicName
from esper.errors import BusError, BusFullError
from esper.oona.publish import RunPublisher
from esper.oona.redis import RedisBus
from tests.oona.server import RedisServer
from tests.tamiyo.test_policies import signal
from tests.terminal.test_display import epoch_ended, judged, logged, started

NOW = 0.0


@pytest.fixture(autouse=True)
def _begins_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of events are relative to the start of the test: telemetry older than 30 s is not sent."""
    monkeypatch.setitem(globals(), "NOW", time.time())


def event(one: Event, *, at: float = 0.0) -> dict[str, Any]:
    """A line of the journal, written `at` seconds from now."""
    return json.loads(json.dumps({"kind": one.kind, "time_unix_s": NOW + at, **dataclasses.asdict(one)}))


def decided(epoch: int, outcome: str = "germinated") -> Decided:
    decision = dataclasses.asdict(
        AdaptationDecision(should_adapt=True, site="layer1.0:after", alternatives=(("a", "b"),))
    )
    return Decided(step=10 * epoch, epoch=epoch, decision=decision, applied=True, outcome=outcome)


def scored(epoch: int) -> Scored:
    return Scored(step=10 * epoch, epoch=epoch, signals=[dataclasses.asdict(signal())], cost_macs=1, cost_s=0.1)


def a_run(*, at: float = 0.0) -> list[dict[str, Any]]:
    events: list[Event] = [
        started(),
        logged(5),
        epoch_ended(10),
        scored(1),
        decided(1),
        Notice(step=10, level="INFO", message="nothing for the bus"),
        epoch_ended(20),
        judged(step=20, graft_id=1, site="layer1.0:after", kept=True)[0],
        RunEnded(step=20, status="finished", reason="", result={"test_accuracy": 0.9}),
    ]
    return [event(one, at=at + 0.001 * number) for number, one in enumerate(events)]


class Recording(RedisBus):
    """A bus that records what is published, in order over all topics."""

    def __init__(self, config: RedisConfig) -> None:
        super().__init__(config)
        self.sent: list[Message] = []

    def publish(self, messages: Sequence[Message], *, channel: str = "") -> None:
        super().publish(messages, channel=channel)
        self.sent.extend(messages)


@pytest.fixture
def bus(redis_server: RedisServer) -> Iterator[Recording]:
    redis_server.start("--appendfsync", "no")
    with contextlib.closing(Recording(redis_server.config())) as bus:
        yield bus


def published(bus: RedisBus) -> list[Message]:
    """All messages published since the last call."""
    got = [entry for topic in TopicName for entry in bus.take(topic, group="test", consumer="test", count=1000)]
    for topic in TopicName:
        bus.acknowledge(topic, group="test", entries=[entry for entry in got if entry.message.topic is topic])
    return [entry.message for entry in got]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run_dir = tmp_path / "lab" / "run-1"
    run_dir.mkdir(parents=True)
    return run_dir


def publish(bus: RedisBus, folder: Path, events: list[dict[str, Any]]) -> RunPublisher:
    run = RunPublisher(bus, run_dir=folder)
    run.ingest(events)
    return run


def test_a_run_is_published_in_order_under_its_run_id(bus: Recording, folder: Path) -> None:
    run = publish(bus, folder, a_run())
    told = [(one.payload.kind, one.topic, one.sender_id, one.trace_id, one.payload.run_id) for one in bus.sent]  # type: ignore[union-attr]
    kinds = ["run", "epoch", "health", "decision_report", "epoch", "field_report", "run"]
    topics = [TopicName.RUNS, TopicName.EPOCHS, TopicName.SEED_HEALTH, TopicName.COMMANDS, TopicName.EPOCHS,
              TopicName.FIELD_REPORTS, TopicName.RUNS]  # fmt: skip
    assert told == [(kind, topic, *["lab/run-1"] * 3) for kind, topic in zip(kinds, topics, strict=True)]
    assert (run.num_logged, run.num_dropped) == (7, 0)


def test_messages_contain_the_values_of_the_journal(bus: Recording, folder: Path) -> None:
    publish(bus, folder, a_run())
    payloads = [one.payload for one in published(bus)]
    (decision,) = (one for one in payloads if isinstance(one, DecisionReport))
    assert (decision.epoch, decision.step, decision.applied, decision.outcome) == (1, 10, True, "germinated")
    assert dataclasses.asdict(decision.decision) == dataclasses.asdict(
        AdaptationDecision(should_adapt=True, site="layer1.0:after", alternatives=(("a", "b"),))
    )
    (health,) = (one for one in payloads if isinstance(one, HealthReport))
    assert health.signals == (signal(),)
    (field,) = (one for one in payloads if isinstance(one, FieldReport))
    assert (field.gain, field.kept, field.added_macs) == (0.1032, True, 10_000)
    first, last = (one for one in payloads if isinstance(one, RunReport))
    assert (first.status, last.status, first.experiment_name, last.experiment_name) == (
        *("running", "finished"), *("demo", "demo"),
    )  # fmt: skip
    assert last.test_metrics == {"accuracy": 0.9}


@pytest.mark.parametrize("size", [1, 2, 9])
def test_every_event_is_sent_once_across_restarts(bus: Recording, folder: Path, size: int) -> None:
    events = a_run()
    for end in range(size, len(events) + size, size):
        publish(bus, folder, events[:end])  # a restart, which reads the journal from the start
    assert len(bus.sent) == 7
    assert len({one.event_id for one in bus.sent}) == 7


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", '{"done": "x", "latest_unix_s": 1, "dropped": 0}'])
def test_messages_sent_twice_after_a_crash_have_the_same_event_id(
    bus: Recording, folder: Path, content: str | None
) -> None:
    events = a_run()
    publish(bus, folder, events)
    if content is None:
        (folder / "bus.json").unlink()
    else:
        (folder / "bus.json").write_text(content)
    publish(bus, folder, events)
    first, again = bus.sent[:7], bus.sent[7:]
    assert [one.event_id for one in again] == [one.event_id for one in first]
    assert [one.payload for one in again] == [one.payload for one in first]


def test_a_run_resumed_from_an_earlier_checkpoint_sends_its_new_events(bus: Recording, folder: Path) -> None:
    kept = [event(started(), at=-9), event(epoch_ended(10), at=-8)]
    publish(bus, folder, [*kept, event(epoch_ended(20), at=-7), event(decided(2, "old"), at=-6)])
    again = [event(started(step=10, resumed_from="step-10"), at=-2), event(decided(2, "new"), at=-1)]
    for end in (1, 2):
        publish(bus, folder, [*kept, *again[:end]])
    publish(bus, folder, [*kept, *again, event(epoch_ended(30))])
    assert [one.payload.kind for one in bus.sent[4:]] == ["run", "decision_report", "epoch"]
    assert len({one.event_id for one in bus.sent}) == 7


def test_a_clock_set_forth_and_back_drops_nothing_of_a_resumed_run(bus: Recording, folder: Path) -> None:
    kept = [event(started(), at=-9), event(epoch_ended(10), at=-8)]
    publish(bus, folder, [*kept, event(epoch_ended(20), at=3600), event(decided(2, "old"), at=3601)])
    again = [event(started(step=10, resumed_from="step-10"), at=-2), event(decided(2, "new"), at=-1)]
    for end in (1, 2):
        publish(bus, folder, [*kept, *again[:end]])
    assert [one.payload.kind for one in bus.sent[4:]] == ["run", "decision_report"]


def test_a_clock_set_forth_drops_no_telemetry_that_has_just_been_written(bus: Recording, folder: Path) -> None:
    run = publish(bus, folder, [event(started())])
    run.ingest([event(epoch_ended(10), at=-3600)])  # the clock was set forth by an hour since
    assert [one.payload.kind for one in bus.sent] == ["run", "epoch"]
    assert run.num_dropped == 0


def test_old_telemetry_is_dropped_and_counted_while_decisions_and_outcomes_are_sent(
    bus: Recording, folder: Path
) -> None:
    run = publish(bus, folder, a_run(at=-3600))
    assert [one.payload.kind for one in bus.sent] == ["run", "decision_report", "field_report", "run"]
    assert (run.num_logged, run.num_dropped) == (4, 3)
    assert RunPublisher(bus, run_dir=folder).num_dropped == 3


def test_unsent_events_are_sent_when_the_bus_is_back(bus: Recording, redis_server: RedisServer, folder: Path) -> None:
    events = a_run()
    redis_server.kill()
    with pytest.raises(BusError, match="refused"):
        publish(bus, folder, events)
    redis_server.start()
    assert publish(bus, folder, events).num_logged == 7


def test_on_a_full_bus_telemetry_is_dropped_and_decisions_wait(
    redis_server: RedisServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper.oona.redis._TRIM_EVERY", 1)
    with contextlib.closing(redis_server.start("--appendfsync", "no").bus(stream_limit=2)) as bus:
        published(bus)  # creates the groups
        events = [event(started()), *[event(epoch_ended(10 * epoch)) for epoch in (1, 2)]]
        assert publish(bus, folder, events).num_dropped == 0
        events += [event(epoch_ended(30)), event(decided(3)), event(decided(4)), event(epoch_ended(40))]
        run = publish(bus, folder, events)
        assert (run.num_logged, run.num_dropped) == (2, 2)
        events += [event(decided(5)), event(epoch_ended(50))]
        for _ in range(2):
            with pytest.raises(BusFullError):
                publish(bus, folder, events)
        decisions = [one.event_id for one in published(bus) if isinstance(one.payload, DecisionReport)]
        assert publish(bus, folder, events).num_dropped == 2
        decisions += [one.event_id for one in published(bus) if isinstance(one.payload, DecisionReport)]
        assert len(set(decisions)) == len(decisions) == 3


def test_an_invalid_event_is_dropped_and_the_others_arrive(bus: Recording, folder: Path) -> None:
    broken = [
        event(decided(1, "x" * 2**21)),  # too long
        event(scored(1)) | {"signals": [{"site": 1}]},
        {name: value for name, value in event(epoch_ended(10)).items() if name != "step"},  # of another version
        event(decided(1)) | {"decision": {"should_adapt": "yes"}},
        event(epoch_ended(10)) | {"epoch": "one"},
        {name: value for name, value in event(decided(1)).items() if name != "outcome"},
    ]
    run = publish(bus, folder, [event(started()), *broken, event(decided(2))])
    assert [one.payload.kind for one in bus.sent] == ["run", "decision_report"]
    assert (run.num_logged, run.num_dropped) == (2, 6)


@pytest.mark.parametrize(
    "content",
    [
        '{"a":' * 100_000,
        '{"done": -1, "starts_unix_s": [], "dropped": 0}',
        '{"done": 1e999, "starts_unix_s": [], "dropped": 0}',
        '{"done": 9, "starts_unix_s": "12", "dropped": 0}',
        '{"done": true, "starts_unix_s": [], "dropped": 0}',
        "[]",
        "\xff",
    ],
)
def test_a_damaged_position_sends_everything_again(bus: Recording, folder: Path, content: str) -> None:
    first = publish(bus, folder, a_run()).num_logged
    (folder / "bus.json").write_text(content, encoding="latin-1")
    assert publish(bus, folder, a_run()).num_logged == first
    assert len({one.event_id for one in bus.sent}) == first


def test_a_link_in_the_run_folder_is_not_written_to(bus: Recording, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    for name in ("bus.json", "bus.new"):
        (folder / name).symlink_to(tmp_path / "precious")
    publish(bus, folder, a_run())
    assert (tmp_path / "precious").read_text() == "precious"
