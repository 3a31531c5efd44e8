"""The bus on a Redis or Valkey server: a stream a topic, consumer groups, dead letters."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from esper.configs.redis import RedisConfig, parse_redis_url
from esper.contracts.messages import Message, TopicName
from esper.errors import BusError, BusFullError, ConfigError, MessageError, one_line
from esper.oona.bus import Entry
from esper.oona.codec import decode, encode
from esper.oona.embedded import embedded_url

__all__ = ["RedisBus", "address", "client"]

_PREFIX = "esper:"
_DEAD = f"{_PREFIX}dead"
_DEAD_LETTERS = 1000
_DEAD_BYTES = 4096
_CHANNEL_LENGTH = 1000
_CHANNEL_DAYS = 7
_TRIM_EVERY = 64
_FIELD = b"m"


def address(config: RedisConfig) -> str:
    """The server's URL without user and password.

    Raises:
        ConfigError: the URL is none, it is that of an unauthenticated server on another machine, or `ca_file` cannot be
            used.
    """
    parts = parse_redis_url(_url(config))
    place = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
    if parts.scheme == "unix":
        place = f"unix://{parts.path}"  # which urllib writes with one slash
    has_password = parts.password or os.environ.get("ESPER_REDIS_PASSWORD")
    if not has_password and not config.allow_unauthenticated and not _is_local(parts.hostname):
        raise ConfigError(
            f"redis.url={place}: a server on another machine needs a password; set ESPER_REDIS_PASSWORD, or "
            "redis.allow_unauthenticated=true"
        )
    if config.ca_file and parts.scheme != "rediss":
        raise ConfigError(f"redis.ca_file={config.ca_file}: {place} is used without TLS; make it rediss://")
    if config.ca_file and not Path(config.ca_file).is_file():
        raise ConfigError(f"redis.ca_file={config.ca_file}: no such file")
    return place


class RedisBus:
    """See `Bus`. Connects at the first call, and again whenever the connection was lost; no call waits for longer than
    `config.timeout_s`, or is tried twice.

    Args:
        config: where the server is.
        claim_after_s: seconds after which a message that was not acknowledged is given to another consumer.

    Raises:
        ConfigError: the server cannot or must not be used, see `address`.
    """

    def __init__(self, config: RedisConfig, *, claim_after_s: float = 60.0) -> None:
        self.place = address(config)
        self._timeout_s = config.timeout_s
        self._limit = config.stream_limit
        self._claim_after_ms = round(1000 * claim_after_s)
        self._untrimmed: Counter[TopicName] = Counter(
            dict.fromkeys(TopicName, _TRIM_EVERY)
        )  # sent since last looked at
        self._unread: dict[tuple[str, str, str], str | None] = {}  # see `_left_behind`
        self._client = client(config)

    def publish(self, messages: Sequence[Message], *, channel: str = "") -> None:
        """See `Bus`."""
        contents = [(one.topic, encode(one)) for one in messages]
        with self._explained():
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
        """See `Bus`."""
        key = _key(topic)
        with self._explained():
            try:
                raw = self._take(key, group, consumer, count, wait_s)
            except redis.ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                self._make_group(key, group)
                raw = self._take(key, group, consumer, count, 0.0)
            now_ms = self._now_ms() if raw else 0
            entries = []
            for place, fields in raw:
                try:
                    entries.append(_entry(place, fields, now_ms))
                except MessageError as error:
                    self._bury(key, group, place, (fields or {}).get(_FIELD, b""), str(error))
            return entries

    def acknowledge(self, topic: TopicName, *, group: str, entries: Sequence[Entry]) -> None:
        """See `Bus`."""
        if entries:
            with self._explained():
                self._client.xack(_key(topic), group, *(entry.id for entry in entries))

    def refuse(self, topic: TopicName, *, group: str, entry: Entry, reason: str) -> None:
        """See `Bus`."""
        with self._explained():
            self._bury(_key(topic), group, entry.id, encode(entry.message), reason)

    def after(self, topic: TopicName, *, channel: str, cursor: str, wait_s: float = 0.0) -> list[Entry]:
        """See `Bus`."""
        until = time.monotonic() + wait_s
        with self._explained():
            while True:
                block = self._block_ms(until - time.monotonic())
                found = self._client.xread({_key(topic, channel): cursor or "0-0"}, block=block)
                raw = [entry for entries in _streams(found) for entry in entries]
                now_ms = self._now_ms() if raw else 0
                entries = [one for place, fields in raw if (one := _readable(place, fields, now_ms))]
                if entries or not raw:
                    return entries
                cursor = raw[-1][0].decode()

    def latest(self, topic: TopicName, *, channel: str) -> Entry | None:
        """See `Bus`."""
        with self._explained():
            raw: Any = self._client.xrevrange(_key(topic, channel), count=1)
            if not raw:
                return None
            place, fields = raw[0]
            return _readable(place, fields, self._now_ms())

    def ping(self) -> str:
        """The server's version, if it answers."""
        with self._explained():
            self._client.ping()
            with contextlib.suppress(redis.ResponseError):  # a user may be kept from INFO
                info: Any = self._client.info("server")
                return str(info.get("valkey_version") or info.get("redis_version"))
            return "unknown"

    def beat(self, name: str, content: str, *, lasts_s: float) -> None:
        """Say that a service is alive, for some seconds."""
        with self._explained():
            self._client.set(f"{_PREFIX}service:{name}", content, px=round(1000 * lasts_s))

    def heartbeats(self) -> dict[str, str]:
        """What the services that are alive say of themselves, by name."""
        with self._explained():
            keys: Any = sorted(self._client.scan_iter(match=f"{_PREFIX}service:*", count=1000))
            values: Any = self._client.mget(keys) if keys else []
            start = len(f"{_PREFIX}service:")
            return {key.decode()[start:]: value.decode() for key, value in zip(keys, values, strict=True) if value}

    def silence(self, name: str) -> None:
        """Take a service's sign of life back."""
        with self._explained():
            self._client.delete(f"{_PREFIX}service:{name}")

    def close(self) -> None:
        """See `Bus`."""
        self._client.close()

    def _take(self, key: str, group: str, consumer: str, count: int, wait_s: float) -> list[tuple[bytes, Any]]:
        if left_behind := self._left_behind(key, group, consumer, count):
            return left_behind
        claimed: Any = self._client.xautoclaim(key, group, consumer, min_idle_time=self._claim_after_ms, count=count)
        if stale := [(place, fields) for place, fields in claimed[1] if fields]:
            return stale
        found = self._client.xreadgroup(group, consumer, {key: ">"}, count=count, block=self._block_ms(wait_s))
        return [entry for entries in _streams(found) for entry in entries]

    def _make_group(self, key: str, group: str) -> None:
        try:
            self._client.xgroup_create(key, group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):  # another consumer was faster
                raise

    def _left_behind(self, key: str, group: str, consumer: str, count: int) -> list[tuple[bytes, Any]]:
        """What this consumer was given before it began, or before it lost the connection, and has not acknowledged."""
        place = self._unread.setdefault((key, group, consumer), "0-0")
        if place is None:
            return []
        found = [
            entry
            for entries in _streams(self._client.xreadgroup(group, consumer, {key: place}, count=count))
            for entry in entries
        ]
        self._unread[key, group, consumer] = found[-1][0].decode() if found else None
        return [entry for entry in found if entry[1]]

    def _bury(self, key: str, group: str, place: bytes | str, content: bytes, reason: str) -> None:
        pipeline = self._client.pipeline(transaction=True)
        letter: dict[Any, Any] = {"stream": key, "reason": reason[:500], "content": content[:_DEAD_BYTES]}
        pipeline.xadd(_DEAD, letter, maxlen=_DEAD_LETTERS, approximate=True)
        pipeline.xack(key, group, place)
        pipeline.execute()

    def _make_room(self, topic: TopicName) -> None:
        """Drop what every group is done with, where a stream has grown long.

        Raises:
            BusFullError: what is left is too much.
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
                f"{self.place}: {topic}: {self._limit} messages wait for their readers; if nobody runs {behind} any "
                f"more: XGROUP DESTROY {key} {behind}"
            )

    def _now_ms(self) -> int:
        seconds, micros = self._client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def _block_ms(self, wait_s: float) -> int | None:
        # Redis answers when this is over; the socket must not have given up before.
        return max(1, round(1000 * min(wait_s, self._timeout_s / 2))) if wait_s > 0 else None

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, OSError) as error:
            self._unread.clear()  # an answer may have been lost on the way
            told = one_line(error, max_length=200)
            if isinstance(error, redis.AuthenticationError):
                told += "; set ESPER_REDIS_PASSWORD, and ESPER_REDIS_USERNAME if need be"
            raise BusError(f"{self.place}: {told}") from None


def client(config: RedisConfig) -> redis.Redis:
    """A client whose calls take at most `config.timeout_s`; it has not connected yet.

    Raises:
        ConfigError: see `address`.
    """
    place = address(config)
    given = {
        name: value
        for name, variable in (("username", "ESPER_REDIS_USERNAME"), ("password", "ESPER_REDIS_PASSWORD"))
        if config.url != "embedded" and (value := os.environ.get(variable))
    }
    if config.ca_file:
        given["ssl_ca_certs"] = config.ca_file
    try:
        return redis.Redis.from_url(
            _url(config),
            **given,
            socket_timeout=config.timeout_s,
            socket_connect_timeout=config.timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise ConfigError(f"redis.url={place}: {error}") from None


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


def _streams(found: Any) -> list[list[tuple[bytes, Any]]]:
    """Entries by stream, however the protocol's version has them."""
    if isinstance(found, dict):
        return [entry for pages in found.values() for entry in pages]
    return [entries for _, entries in found or ()]


def _order(place: Any) -> tuple[int, int]:
    text = place.decode() if isinstance(place, bytes) else str(place)
    ms, _, sequence = text.partition("-")
    return int(ms), int(sequence or 0)


def _entry(place: bytes, fields: Any, now_ms: int) -> Entry:
    if not fields or set(fields) != {_FIELD}:
        raise MessageError("an entry without a message")
    age_s = max(0.0, (now_ms - _order(place)[0]) / 1000)
    return Entry(id=place.decode(), message=decode(fields[_FIELD]), age_s=age_s)


def _readable(place: bytes, fields: Any, now_ms: int) -> Entry | None:
    try:
        return _entry(place, fields, now_ms)
    except MessageError:
        return None
