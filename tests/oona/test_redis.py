"""Streams on a real server: invalid entries, restarts of consumers and servers, limits, heartbeats."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esper.contracts.messages import DecisionMade, TopicName
from esper.errors import BusError, BusFullError
from esper.oona.codec import MAX_BYTES, encode, message
from esper.oona.redis import Entry, RedisBus
from tests.oona.payloads import numbered, said
from tests.oona.server import PASSWORD, RedisServer, num_connections

TOPIC = TopicName.EPOCHS
KEY = f"esper:{TOPIC}"
CHANNEL = "lab/run"
quick = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def server(redis_server: RedisServer) -> RedisServer:
    return redis_server.start()


@pytest.fixture
def bus(server: RedisServer) -> Iterator[RedisBus]:
    with contextlib.closing(server.bus()) as made:
        yield made


@pytest.fixture
def admin(server: RedisServer) -> Iterator[redis.Redis]:
    with contextlib.closing(server.admin()) as client:
        yield client


def take(bus: RedisBus, consumer: str = "one", **arguments: Any) -> list[Entry]:
    return bus.take(TOPIC, group="readers", consumer=consumer, **arguments)


def letters(admin: redis.Redis) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in admin.xrange("esper:dead")]  # type: ignore[union-attr]


def answer(nonce: str) -> Any:
    payload = DecisionMade(run_id=CHANNEL, epoch=1, nonce=nonce, decision=None)
    return message(TopicName.COMMANDS, payload, sender="test", trace="test")


# --- invalid ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"m": b"\x80rubbish"}, b"message: "),
        ({"m": b"x" * (MAX_BYTES + 1)}, b"exceed the limit of 1048576"),
        ({"other": b"1"}, b"an entry without a message"),
        ({"m": encode(numbered(1)[0]), "more": b"1"}, b"an entry without a message"),
        ({"m": encode(numbered(1)[0]).replace(b'"version":1', b'"version":2')}, b"version: "),
        ({"m": encode(answer("n"))[:-1] + b',"x":1}'}, b"x: "),
    ],
)
def test_invalid_entries_go_to_the_dead_letters_with_the_reason(
    bus: RedisBus, admin: redis.Redis, fields: dict[Any, Any], reason: bytes
) -> None:
    bus.publish(numbered(1))
    admin.xadd(KEY, fields)
    bus.publish(numbered(2))
    assert said(take(bus)) == [1, 2]
    (letter,) = letters(admin)
    assert reason in letter[b"reason"]
    assert (letter[b"stream"], letter[b"content"]) == (KEY.encode(), fields.get("m", b"")[:4096])
    assert admin.xpending(KEY, "readers")["pending"] == 2  # type: ignore[index]


@quick
@given(st.lists(st.dictionaries(st.binary(max_size=3), st.binary(max_size=50), min_size=1, max_size=3), max_size=5))
def test_messages_between_invalid_entries_arrive(
    bus: RedisBus, admin: redis.Redis, rubbish: list[dict[Any, Any]]
) -> None:
    for fields in rubbish:
        admin.xadd(KEY, fields)
        admin.xadd(f"esper:{TopicName.COMMANDS}:{CHANNEL}", fields)
    bus.publish(numbered(1))
    bus.publish([answer("n")], channel=CHANNEL)
    assert said(take(bus)) == [1]
    assert [e.message.payload.nonce for e in bus.after(TopicName.COMMANDS, channel=CHANNEL, cursor="")][-1] == "n"  # type: ignore[union-attr]
    admin.delete(KEY, f"esper:{TopicName.COMMANDS}:{CHANNEL}")


def test_an_invalid_entry_in_a_channel_does_not_end_the_wait_for_an_answer(bus: RedisBus, admin: redis.Redis) -> None:
    admin.xadd(f"esper:{TopicName.COMMANDS}:{CHANNEL}", {"m": "rubbish"})
    assert bus.latest(TopicName.COMMANDS, channel=CHANNEL) is None
    started = time.monotonic()
    assert bus.after(TopicName.COMMANDS, channel=CHANNEL, cursor="", wait_s=0.3) == []
    assert time.monotonic() - started > 0.25


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_message_is_new_whatever_time_its_id_says(bus: RedisBus, admin: redis.Redis, hours: int) -> None:
    """The server's clock was set between publishing and reading, here by giving the ID that it would have given."""
    assert take(bus) == []
    (new,) = numbered(1)
    admin.xadd(KEY, {"m": encode(new)}, id=f"{round(1000 * (time.time() - 3600 * hours))}-0")
    (entry,) = take(bus)
    assert entry.age_s < 60
    bus.publish(numbered(2))  # IDs increase all the same
    assert said(take(bus)) == [2]


def test_a_refused_message_goes_to_the_dead_letters_which_are_trimmed(bus: RedisBus, admin: redis.Redis) -> None:
    with admin.pipeline() as earlier:
        for number in range(1500):
            earlier.xadd("esper:dead", {"reason": number})
        earlier.execute()
    bus.publish(numbered(1))
    (entry,) = take(bus)
    bus.refuse(TOPIC, group="readers", entry=entry, reason="late")
    kept = letters(admin)
    assert 1000 <= len(kept) <= 1100
    assert kept[-1][b"reason"] == b"late"
    assert take(bus) == []


def test_a_key_of_another_type_is_an_error_with_the_address(bus: RedisBus, admin: redis.Redis, server: RedisServer):
    admin.set(KEY, "mine")
    with pytest.raises(BusError, match=rf"^redis://127.0.0.1:{server.port}: WRONGTYPE"):
        bus.publish(numbered(1))


# --- restarts of consumers --------------------------------------------------------------------------------------------


def test_a_restarted_consumer_gets_its_pending_messages_first(server: RedisServer, bus: RedisBus) -> None:
    bus.publish(numbered(1, 2, 3))
    assert said(take(bus, count=2)) == [1, 2]
    with contextlib.closing(server.bus()) as again:
        assert said(take(again, count=1)) == [1]
        assert said(take(again, count=1)) == [2]
        assert said(take(again)) == [3]
        assert take(again) == []


def test_deleted_pending_messages_are_skipped(server: RedisServer, bus: RedisBus, admin: redis.Redis) -> None:
    bus.publish(numbered(1, 2))
    first, _ = take(bus)
    admin.xdel(KEY, first.id)
    with contextlib.closing(server.bus(claim_after_s=0)) as again:
        assert said(take(again)) == [2]
        assert said(take(again)) == [2]  # claimed at once
        assert said(take(again, "heir")) == [2]


def test_a_deleted_group_is_recreated(bus: RedisBus, admin: redis.Redis) -> None:
    bus.publish(numbered(1))
    assert said(take(bus)) == [1]
    admin.flushall()
    bus.publish(numbered(2))
    assert said(take(bus)) == [2]


def test_messages_of_a_killed_process_are_redelivered_to_others(server: RedisServer, bus: RedisBus) -> None:
    bus.publish(numbered(1, 2))
    code = f"""
import os, signal
from esper.configs import RedisConfig
from esper.contracts.messages import TopicName
from esper.oona.redis import RedisBus
got = RedisBus(RedisConfig(url="{server.url}", timeout_s={server.config().timeout_s})).take(
    TopicName("{TOPIC}"), group="readers", consumer="dead")
assert len(got) == 2
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"ESPER_REDIS_PASSWORD": PASSWORD}, check=False
    )
    assert done.returncode == -9
    assert take(bus, "heir") == []
    time.sleep(0.02)  # longer than claim_after_s
    with contextlib.closing(server.bus(claim_after_s=0.01)) as heir:
        assert said(take(heir, "heir")) == [1, 2]


# --- restarts of the server -------------------------------------------------------------------------------------------


def test_a_restarted_server_has_lost_nothing(server: RedisServer, bus: RedisBus) -> None:
    bus.publish(numbered(1, 2))
    bus.acknowledge(TOPIC, group="readers", entries=take(bus, count=1))
    assert said(take(bus)) == [2]
    server.kill()
    with pytest.raises(BusError, match="redis://127"):
        take(bus)
    with pytest.raises(BusError):
        bus.publish(numbered(3))
    server.start()
    bus.publish(numbered(4))
    assert said(take(bus)) == [2]
    assert said(take(bus)) == [4]


def test_a_server_restart_between_two_calls_is_not_an_error(server: RedisServer, bus: RedisBus) -> None:
    bus.publish(numbered(1))
    server.kill()
    server.start()
    bus.publish(numbered(2))
    assert said(take(bus)) == [1, 2]


def test_a_hung_server_costs_one_timeout_per_call(server: RedisServer, admin: redis.Redis) -> None:
    with contextlib.closing(server.bus(timeout_s=0.3)) as bus:
        with contextlib.suppress(BusError):  # connects; a busy machine may take longer
            bus.ping()
        before = num_connections(admin)
        server.stop()
        calls = [
            lambda: bus.publish(numbered(1)),
            lambda: take(bus, wait_s=90),
            lambda: bus.after(TopicName.COMMANDS, channel=CHANNEL, cursor="", wait_s=90),
            lambda: bus.latest(TopicName.COMMANDS, channel=CHANNEL),
        ]
        started = time.monotonic()
        for call in calls:
            with pytest.raises(BusError):
                call()
        assert time.monotonic() - started < 45
        server.go_on()
        assert num_connections(admin) - before <= len(calls)  # a retry would connect anew
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(BusError):
                bus.ping()
                break
            assert time.monotonic() < deadline


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_server_without_memory_refuses_and_keeps_acknowledged_writes(
    server: RedisServer, admin: redis.Redis, bus: RedisBus
) -> None:
    bus.publish(numbered(1))
    admin.config_set("maxmemory", 1)
    with pytest.raises(BusError, match="maxmemory") as caught:
        bus.publish(numbered(2, 3))
    assert not isinstance(caught.value, BusFullError)
    admin.config_set("maxmemory", 0)
    bus.publish(numbered(4))
    assert said(take(bus)) == [1, 4]


def test_messages_are_trimmed_once_all_groups_acknowledged_them(
    server: RedisServer, bus: RedisBus, admin: redis.Redis
) -> None:
    bus.publish(numbered(*range(300)))
    ahead = bus.take(TOPIC, group="ahead", consumer="one", count=300)
    bus.acknowledge(TOPIC, group="ahead", entries=ahead)
    behind = bus.take(TOPIC, group="behind", consumer="one", count=250)
    bus.acknowledge(TOPIC, group="behind", entries=behind[:200])
    with contextlib.closing(server.bus(stream_limit=100)) as small:
        with pytest.raises(BusFullError, match="100 unread messages"):
            small.publish(numbered(300))
        assert admin.xlen(KEY) == 100  # trimmed up to the first unacknowledged message
        bus.acknowledge(TOPIC, group="behind", entries=behind[200:])
        small.publish(numbered(300))
    assert said(bus.take(TOPIC, group="behind", consumer="one", count=100)) == list(range(250, 301))


def test_a_channel_is_limited_and_expires(bus: RedisBus, admin: redis.Redis) -> None:
    bus.publish([answer(str(number)) for number in range(3000)], channel=CHANNEL)
    key = f"esper:{TopicName.COMMANDS}:{CHANNEL}"
    assert 1000 <= admin.xlen(key) <= 1200  # type: ignore[operator]
    assert 0 < admin.ttl(key) <= 7 * 86_400  # type: ignore[operator]


# --- heartbeats -------------------------------------------------------------------------------------------------------


def test_a_heartbeat_lasts_until_it_expires_or_is_deleted(bus: RedisBus) -> None:
    bus.beat("tamiyo:a", "serving", lasts_s=60)
    bus.beat("tamiyo:b", "serving", lasts_s=60)
    bus.beat("tezzeret", "gone", lasts_s=0.02)
    time.sleep(0.05)
    assert bus.heartbeats() == {"tamiyo:a": "serving", "tamiyo:b": "serving"}
    bus.silence("tamiyo:a")
    assert bus.heartbeats() == {"tamiyo:b": "serving"}
    assert bus.ping().count(".") == 2
