"""Topics, groups, limits and channels of the bus, on a real server."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from esper.contracts.messages import DecisionMade, TopicName
from esper.errors import BusFullError, MessageError
from esper.oona.codec import message
from esper.oona.redis import Entry, RedisBus
from tests.oona.payloads import epoch_report, numbered, said
from tests.oona.server import RedisServer

TOPIC = TopicName.EPOCHS
MakeBus = Callable[..., RedisBus]


@pytest.fixture
def make_bus(redis_server: RedisServer) -> Iterator[MakeBus]:
    server = redis_server.start("--appendfsync", "no")
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(contextlib.closing(server.bus(**settings)))


def take(
    bus: RedisBus, consumer: str = "one", *, group: str = "readers", count: int = 32, wait_s: float = 0
) -> list[Entry]:
    return bus.take(TOPIC, group=group, consumer=consumer, count=count, wait_s=wait_s)


def done(bus: RedisBus, entries: list[Entry], *, group: str = "readers") -> None:
    bus.acknowledge(TOPIC, group=group, entries=entries)


def answer(nonce: str, *, run_id: str = "lab/run") -> DecisionMade:
    return DecisionMade(run_id=run_id, epoch=1, nonce=nonce, decision=None)


def answers(bus: RedisBus, *nonces: str, channel: str = "lab/run") -> None:
    sent = [message(TopicName.COMMANDS, answer(nonce), sender="test", trace="test") for nonce in nonces]
    bus.publish(sent, channel=channel)


def nonces(entries: list[Entry]) -> list[str]:
    payloads = [entry.message.payload for entry in entries]
    return [payload.nonce for payload in payloads if isinstance(payload, DecisionMade)]


# --- topics and groups ------------------------------------------------------------------------------------------------


def test_messages_arrive_unchanged_in_order_with_increasing_ids(bus: RedisBus) -> None:
    sent = numbered(*range(5))
    bus.publish(sent)
    got = take(bus)
    assert [entry.message for entry in got] == sent
    assert len({entry.id for entry in got}) == 5
    assert all(0 <= entry.age_s < 30 for entry in got)


def test_every_group_gets_every_message_and_consumers_of_a_group_share_them(bus: RedisBus) -> None:
    bus.publish(numbered(*range(6)))
    assert said(take(bus, "one", count=4) + take(bus, "two")) == list(range(6))
    assert said(take(bus, "one", group="others")) == list(range(6))


def test_topics_are_separate(bus: RedisBus) -> None:
    bus.publish(numbered(1))
    assert bus.take(TopicName.RUNS, group="readers", consumer="one") == []


def test_a_pending_message_is_not_redelivered_early(bus: RedisBus) -> None:
    bus.publish(numbered(1, 2))
    assert said(take(bus, "one", count=1)) == [1]
    assert said(take(bus, "two")) == [2]
    assert take(bus, "two") == []


def test_unacknowledged_messages_are_redelivered_to_another_consumer(make_bus: MakeBus) -> None:
    bus = make_bus(claim_after_s=0.05)
    bus.publish(numbered(1, 2))
    first = take(bus, "dead")
    time.sleep(0.06)
    again = take(bus, "heir")
    assert [entry.message.event_id for entry in again] == [entry.message.event_id for entry in first]
    done(bus, again)
    time.sleep(0.06)
    assert take(bus, "heir") == []


def test_acknowledged_messages_are_not_redelivered(make_bus: MakeBus) -> None:
    bus = make_bus(claim_after_s=0.05)
    bus.publish(numbered(1, 2, 3))
    done(bus, take(bus)[:2])
    time.sleep(0.06)
    assert said(take(bus)) == [3]


def test_acknowledging_twice_nothing_or_in_an_unknown_group_is_harmless(bus: RedisBus) -> None:
    bus.publish(numbered(1))
    got = take(bus)
    for _ in range(2):
        done(bus, got)
    done(bus, [])
    done(bus, got, group="nobody")
    assert take(bus) == []


def test_a_refused_message_is_not_redelivered(make_bus: MakeBus) -> None:
    bus = make_bus(claim_after_s=0.05)
    bus.publish(numbered(1))
    (entry,) = take(bus)
    bus.refuse(TOPIC, group="readers", entry=entry, reason="of no use")
    time.sleep(0.06)
    assert take(bus) == []


def test_take_waits_for_a_message(make_bus: MakeBus) -> None:
    bus = make_bus(timeout_s=120)  # of which a wait may last half: a busy machine takes less
    assert take(bus) == []  # creates the group
    later = threading.Timer(0.1, lambda: bus.publish(numbered(7)))
    later.start()
    started = time.monotonic()
    assert said(take(bus, wait_s=60)) == [7]
    assert time.monotonic() - started < 45
    later.join()


def test_take_waits_at_most_wait_s(make_bus: MakeBus) -> None:
    bus = make_bus(timeout_s=120)
    take(bus)
    started = time.monotonic()
    assert take(bus, wait_s=0.1) == []
    assert 0.05 < time.monotonic() - started < 30


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_batch_with_an_invalid_message_is_not_sent_at_all(bus: RedisBus) -> None:
    good = numbered(1)
    bad = dataclasses.replace(good[0], sender_id="x" * 2**21)
    with pytest.raises(MessageError):
        bus.publish([*good, bad])
    assert take(bus) == []


def test_a_topic_without_readers_is_trimmed(make_bus: MakeBus) -> None:
    bus = make_bus(stream_limit=100)
    for start in range(0, 1000, 50):
        bus.publish(numbered(*range(start, start + 50)))
    kept = said(take(bus, count=1000))
    assert len(kept) <= 200
    assert kept == list(range(1000 - len(kept), 1000))


def test_unacknowledged_messages_are_never_dropped_and_fill_the_topic(make_bus: MakeBus) -> None:
    bus = make_bus(stream_limit=100, claim_after_s=0.05)
    bus.publish(numbered(0))
    held = take(bus, "slow")
    sent = []
    with contextlib.suppress(BusFullError):
        for number in range(1, 1000):
            bus.publish(numbered(number))
            sent.append(number)
    assert 99 <= len(sent) <= 200
    time.sleep(0.06)
    done(bus, again := take(bus, "heir", count=1))
    assert said(again) == said(held) == [0]
    done(bus, rest := take(bus, "heir", count=1000))
    assert said(rest) == sent
    bus.publish(numbered(1000))


def test_messages_unread_by_a_slow_group_are_never_dropped(make_bus: MakeBus) -> None:
    bus = make_bus(stream_limit=100)
    bus.publish(numbered(0))
    done(bus, take(bus, group="slow", count=1), group="slow")
    seen = []
    for number in range(1, 90):
        bus.publish(numbered(number))
        done(bus, got := take(bus))
        seen += said(got)
    assert said(take(bus, group="slow", count=1000)) == list(range(1, 90))
    assert seen[-89:] == list(range(1, 90))


# --- channels ---------------------------------------------------------------------------------------------------------


def test_a_channel_is_read_after_a_cursor(bus: RedisBus) -> None:
    answers(bus, "a", "b")
    got = bus.after(TopicName.COMMANDS, channel="lab/run", cursor="")
    assert nonces(got) == ["a", "b"]
    assert nonces(bus.after(TopicName.COMMANDS, channel="lab/run", cursor=got[0].id)) == ["b"]
    assert bus.after(TopicName.COMMANDS, channel="lab/run", cursor=got[1].id) == []


def test_channels_of_a_topic_are_separate(bus: RedisBus) -> None:
    answers(bus, "a")
    answers(bus, "b", channel="lab/other")
    assert nonces(bus.after(TopicName.COMMANDS, channel="lab/run", cursor="")) == ["a"]
    assert bus.take(TopicName.COMMANDS, group="readers", consumer="one") == []


def test_latest_returns_the_last_message_of_a_channel(bus: RedisBus) -> None:
    assert bus.latest(TopicName.COMMANDS, channel="lab/run") is None
    answers(bus, "a", "b")
    last = bus.latest(TopicName.COMMANDS, channel="lab/run")
    assert last is not None
    assert nonces([last]) == ["b"]


def test_reading_a_channel_waits_for_a_message(make_bus: MakeBus) -> None:
    bus = make_bus(timeout_s=120)
    answers(bus, "old")
    last = bus.latest(TopicName.COMMANDS, channel="lab/run")
    assert last is not None
    later = threading.Timer(0.1, lambda: answers(bus, "new"))
    later.start()
    assert nonces(bus.after(TopicName.COMMANDS, channel="lab/run", cursor=last.id, wait_s=60)) == ["new"]
    later.join()


def test_a_bus_may_be_closed_twice(bus: RedisBus) -> None:
    bus.publish([message(TOPIC, epoch_report(1), sender="test", trace="test")])
    bus.close()
    bus.close()
