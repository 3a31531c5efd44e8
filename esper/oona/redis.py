"""The message bus on a Redis or Valkey server: one stream per topic, consumer groups, dead letters."""

from __future__ import annotations

import contextlib
import ipaddress
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from esper.configs.redis import RedisConfig, parse_redis_url
from esper.contracts.messages import Message, TopicName
from esper.errors import BusError, BusFullError, ConfigError, MessageError, one_line
from esper.oona.codec import decode, encode
from esper.oona.embedded import embedded_url

__all__ = ["Entry", "RedisBus", "address", "client"]

_PREFIX = "esper:"
_DEAD = f"{_PREFIX}dead"
_DEAD_LETTERS = 1000
_DEAD_BYTES = 4096
_CHANNEL_LENGTH = 1000
_CHANNEL_DAYS = 7
_TRIM_EVERY = 64
_FIELD = b"m"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A message in a stream.

    Attributes:
        id: ID in the stream; IDs increase.
        message: the published message.
        age_s: seconds since it was published, by the server's clock; where its reader knows better, at most what it
            knows.
    """

    id: str
    message: Message
    age_s: float


def address(config: RedisConfig) -> str:
    """The server's URL without user name and password.

    Raises:
        ConfigError: the URL is invalid, names a server on another machine without a password or without TLS, or
            `ca_file` cannot be used.
    """
    parts = parse_redis_url(_url(config))
    url = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
    if parts.scheme == "unix":
        url = f"unix://{parts.path}"  # urllib would write one slash
    has_password = parts.password or os.environ.get("ESPER_REDIS_PASSWORD")
    if not has_password and not config.allow_unauthenticated and not _is_local(parts.hostname):
        raise ConfigError(
            f"redis.url={url}: a server on another machine needs a password; set ESPER_REDIS_PASSWORD, or "
            "redis.allow_unauthenticated=true"
        )
    if has_password and parts.scheme == "redis" and not config.allow_unencrypted and not _is_local(parts.hostname):
        raise ConfigError(
            f"redis.url={url}: the password would cross the network unencrypted; use rediss:// (TLS), or "
            "redis.allow_unencrypted=true"
        )
    if config.ca_file and parts.scheme != "rediss":
        raise ConfigError(f"redis.ca_file={config.ca_file}: {url} does not use TLS; use rediss://")
    if config.ca_file and not Path(config.ca_file).is_file():
        raise ConfigError(f"redis.ca_file={config.ca_file}: no such file")
    return url


class RedisBus:
    """Topics that processes publish to and consumer groups read from.

    A message is delivered at least once to every group: it is delivered again until it is acknowledged, to another
    consumer if the first has died, so consumers must recognise duplicates (`Message.event_id`). Unacknowledged messages
    are never dropped. Messages for a single reader go to a channel of a topic.

    Connects on the first call and reconnects after a lost connection. No request takes longer than `config.timeout_s`
    or is retried.

    Args:
        config: address of the server, timeout and limits.
        claim_after_s: seconds after which an unacknowledged message is delivered to another consumer.

    Raises:
        ConfigError: see `address`.
        BusError: from any method: the server cannot be reached, or refuses the command.
    """

    def __init__(self, config: RedisConfig, *, claim_after_s: float = 60.0) -> None:
        self.address = address(config)
        self._timeout_s = config.timeout_s
        self._limit = config.stream_limit
        self._claim_after_ms = round(1000 * claim_after_s)
        self._untrimmed = Counter(dict.fromkeys(TopicName, _TRIM_EVERY))  # messages published since the last trim
        self._unread: dict[tuple[str, str, str], str | None] = {}  # see `_redelivered`
        self._read_at: dict[tuple[str, str], float] = {}  # when a group had read all of a topic, by the monotonic clock
        self._client = client(config)

    def publish(self, messages: Sequence[Message], *, channel: str = "") -> None:
        """Append messages to their topics, in order.

        Raises:
            BusFullError: readers are too far behind; nothing was published.
            MessageError: a message is too long, or its topic does not accept it; nothing was published.
        """
        contents = [(message.topic, encode(message)) for message in messages]
        with self._bus_errors():
            topics = Counter(topic for topic, _ in contents)
            for topic in topics:
                if not channel and self._untrimmed[topic] >= _TRIM_EVERY:
                    self._make_room(topic)
                    self._untrimmed[topic] = 0
            pipeline = self._client.pipeline(transaction=False)
            for topic, content in contents:
                if channel:
                    pipeline.xadd(_key(topic, channel), {_FIELD: content}, maxlen=_CHANNEL_LENGTH, approximate=True)
                    pipeline.expire(_key(topic, channel), _CHANNEL_DAYS * 86_400)
                else:
                    pipeline.xadd(_key(topic), {_FIELD: content})
            pipeline.execute()
        self._untrimmed += topics

    def take(self, topic: TopicName, *, group: str, consumer: str, count: int = 32, wait_s: float = 0.0) -> list[Entry]:
        """The next messages for a group: first those redelivered from this or a dead consumer, then new ones.

        Waits up to `wait_s`, but at most half of `config.timeout_s`. Messages that cannot be decoded go to the dead
        letters, with the reason.
        """
        key = _key(topic)
        with self._bus_errors():
            try:
                raw, max_age_s = self._take(key, group, consumer, count, wait_s)
            except redis.ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                self._make_group(key, group)
                raw, max_age_s = self._take(key, group, consumer, count, 0.0)
            now_ms = self._now_ms() if raw else 0
            entries = []
            for entry_id, fields in raw:
                try:
                    entries.append(_entry(entry_id, fields, now_ms, max_age_s=max_age_s))
                except MessageError as error:
                    self._dead_letter(key, group, entry_id, (fields or {}).get(_FIELD, b""), str(error))
            return entries

    def acknowledge(self, topic: TopicName, *, group: str, entries: Sequence[Entry]) -> None:
        """Mark messages as processed: they are not delivered to the group again."""
        if entries:
            with self._bus_errors():
                self._client.xack(_key(topic), group, *(entry.id for entry in entries))

    def refuse(self, topic: TopicName, *, group: str, entry: Entry, reason: str) -> None:
        """Move an unusable message to the dead letters."""
        with self._bus_errors():
            self._dead_letter(_key(topic), group, entry.id, encode(entry.message), reason)

    def after(self, topic: TopicName, *, channel: str, cursor: str, wait_s: float = 0.0) -> list[Entry]:
        """The messages of a channel after the entry ID `cursor`; `""` is the beginning."""
        until = time.monotonic() + wait_s
        with self._bus_errors():
            while True:
                block = self._block_ms(until - time.monotonic())
                raw = _entries(self._client.xread({_key(topic, channel): cursor or "0-0"}, block=block))
                now_ms = self._now_ms() if raw else 0
                entries = [entry for entry_id, fields in raw if (entry := _readable(entry_id, fields, now_ms))]
                if entries or not raw:
                    return entries
                cursor = raw[-1][0].decode()

    def latest(self, topic: TopicName, *, channel: str) -> Entry | None:
        """The last message of a channel, if it has one."""
        with self._bus_errors():
            raw: Any = self._client.xrevrange(_key(topic, channel), count=1)
            if not raw:
                return None
            ((entry_id, fields),) = raw
            return _readable(entry_id, fields, self._now_ms())

    def ping(self) -> str:
        """The server's version; `unknown` to a user without permission for INFO."""
        with self._bus_errors():
            self._client.ping()
            with contextlib.suppress(redis.ResponseError):
                info: Any = self._client.info("server")
                return str(info.get("valkey_version") or info.get("redis_version"))
            return "unknown"

    def beat(self, name: str, content: str, *, lasts_s: float) -> None:
        """Publish the heartbeat of a service, valid for `lasts_s` seconds."""
        with self._bus_errors():
            self._client.set(f"{_PREFIX}service:{name}", content, px=round(1000 * lasts_s))

    def heartbeats(self) -> dict[str, str]:
        """The contents of all valid heartbeats, by name."""
        with self._bus_errors():
            keys: Any = sorted(self._client.scan_iter(match=f"{_PREFIX}service:*", count=1000))
            values: Any = self._client.mget(keys) if keys else []
            start = len(f"{_PREFIX}service:")
            return {key.decode()[start:]: value.decode() for key, value in zip(keys, values, strict=True) if value}

    def silence(self, name: str) -> None:
        """Delete the heartbeat of a service."""
        with self._bus_errors():
            self._client.delete(f"{_PREFIX}service:{name}")

    def close(self) -> None:
        """Close the connections; safe to call twice."""
        self._client.close()

    def _take(
        self, key: str, group: str, consumer: str, count: int, wait_s: float
    ) -> tuple[list[tuple[bytes, Any]], float]:
        """(ID, fields) of the next entries, and the age in seconds that none of them exceeds."""
        if redelivered := self._redelivered(key, group, consumer, count):
            return redelivered, math.inf
        claimed: Any = self._client.xautoclaim(key, group, consumer, min_idle_time=self._claim_after_ms, count=count)
        if stale := [(entry_id, fields) for entry_id, fields in claimed[1] if fields]:
            return stale, math.inf
        # What is new was published after the group had read everything, even if the server's clock was set since.
        before, read_at = time.monotonic(), self._read_at.get((key, group), -math.inf)
        new = _entries(self._client.xreadgroup(group, consumer, {key: ">"}, count=count, block=self._block_ms(wait_s)))
        if len(new) < count:
            self._read_at[key, group] = before
        return new, time.monotonic() - read_at

    def _make_group(self, key: str, group: str) -> None:
        try:
            self._client.xgroup_create(key, group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):  # another consumer created it first
                raise

    def _redelivered(self, key: str, group: str, consumer: str, count: int) -> list[tuple[bytes, Any]]:
        """Unacknowledged entries delivered to this consumer before it started, or before it lost the connection."""
        after = self._unread.setdefault((key, group, consumer), "0-0")
        if after is None:
            return []
        entries = _entries(self._client.xreadgroup(group, consumer, {key: after}, count=count))
        self._unread[key, group, consumer] = entries[-1][0].decode() if entries else None
        return [entry for entry in entries if entry[1]]

    def _dead_letter(self, key: str, group: str, entry_id: bytes | str, content: bytes, reason: str) -> None:
        pipeline = self._client.pipeline(transaction=True)
        letter: dict[Any, Any] = {"stream": key, "reason": reason[:500], "content": content[:_DEAD_BYTES]}
        pipeline.xadd(_DEAD, letter, maxlen=_DEAD_LETTERS, approximate=True)
        pipeline.xack(key, group, entry_id)
        pipeline.execute()

    def _make_room(self, topic: TopicName) -> None:
        """Trim a stream at its limit to the messages that some group has not acknowledged.

        Raises:
            BusFullError: the rest still exceeds the limit.
        """
        key = _key(topic)
        if self._client.xlen(key) < self._limit:
            return
        groups: Any = self._client.xinfo_groups(key)
        if not groups:
            self._client.xtrim(key, maxlen=self._limit // 2, approximate=False)
            return
        needed = []
        for group in groups:
            pending: Any = self._client.xpending(key, group["name"])
            needed.append(pending["min"] or group["last-delivered-id"])
        self._client.xtrim(key, minid=min(needed, key=_order), approximate=False)
        if self._client.xlen(key) >= self._limit:
            behind = min(groups, key=lambda group: _order(group["last-delivered-id"]))["name"].decode()
            raise BusFullError(
                f"{self.address}: {topic}: {self._limit} unread messages; if {behind} no longer runs: "
                f"XGROUP DESTROY {key} {behind}"
            )

    def _now_ms(self) -> int:
        seconds, micros = self._client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def _block_ms(self, wait_s: float) -> int | None:
        # The server replies after this time, which must come before the socket times out.
        return max(1, round(1000 * min(wait_s, self._timeout_s / 2))) if wait_s > 0 else None

    @contextlib.contextmanager
    def _bus_errors(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, OSError) as error:
            self._unread.clear()  # a reply with entries may have been lost
            reason = one_line(error, max_length=200)
            if isinstance(error, redis.AuthenticationError):
                reason += "; set ESPER_REDIS_PASSWORD, and ESPER_REDIS_USERNAME if the server needs one"
            raise BusError(f"{self.address}: {reason}") from None


def client(config: RedisConfig) -> redis.Redis:
    """A client that is not connected yet and whose calls take at most `config.timeout_s`.

    Raises:
        ConfigError: see `address`.
    """
    url = address(config)
    options = {
        name: value
        for name, variable in (("username", "ESPER_REDIS_USERNAME"), ("password", "ESPER_REDIS_PASSWORD"))
        if config.url != "embedded" and (value := os.environ.get(variable))
    }
    if config.ca_file:
        options["ssl_ca_certs"] = config.ca_file
    try:
        return redis.Redis.from_url(
            _url(config),
            **options,
            socket_timeout=config.timeout_s,
            socket_connect_timeout=config.timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise ConfigError(f"redis.url={url}: {error}") from None


def _url(config: RedisConfig) -> str:
    if config.url == "embedded":
        return embedded_url()
    return config.url or os.environ.get("ESPER_REDIS_URL") or "redis://localhost:6379/0"


def _is_local(host: str | None) -> bool:
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return False


def _key(topic: TopicName, channel: str = "") -> str:
    return f"{_PREFIX}{topic}:{channel}" if channel else f"{_PREFIX}{topic}"


def _entries(reply: Any) -> list[tuple[bytes, Any]]:
    """(ID, fields) of all entries in the reply to XREAD or XREADGROUP, of either protocol version."""
    if isinstance(reply, dict):
        return [entry for pages in reply.values() for entries in pages for entry in entries]
    return [entry for _, entries in reply or () for entry in entries]


def _order(entry_id: bytes | str) -> tuple[int, int]:
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    ms, _, sequence = text.partition("-")
    return int(ms), int(sequence or 0)


def _entry(entry_id: bytes, fields: Any, now_ms: int, *, max_age_s: float = math.inf) -> Entry:
    if not fields or set(fields) != {_FIELD}:
        raise MessageError("an entry without a message")
    age_s = min(max(0.0, (now_ms - _order(entry_id)[0]) / 1000), max_age_s)
    return Entry(id=entry_id.decode(), message=decode(fields[_FIELD]), age_s=age_s)


def _readable(entry_id: bytes, fields: Any, now_ms: int) -> Entry | None:
    try:
        return _entry(entry_id, fields, now_ms)
    except MessageError:
        return None
