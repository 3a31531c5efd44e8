"""A bus in this process."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from esper.contracts.messages import Message, TopicName
from esper.errors import BusFullError, MessageError
from esper.oona.bus import Entry
from esper.oona.codec import decode, encode

__all__ = ["MemoryBus"]

_DEAD_LETTERS = 1000


@dataclass
class _Group:
    cursor: int = 0
    pending: dict[int, float] = field(default_factory=dict)  # number → when it was delivered


@dataclass
class _Stream:
    entries: dict[int, tuple[bytes, float]] = field(default_factory=dict)  # number → content, time; in order
    last: int = 0
    groups: dict[str, _Group] = field(default_factory=dict)

    def trim(self, limit: int) -> None:
        """Drop the oldest that every group is done with."""
        needed = min((min([*group.pending, group.cursor + 1]) for group in self.groups.values()), default=self.last + 1)
        for number in list(self.entries)[: max(0, len(self.entries) - limit)]:
            if number >= needed:
                break
            del self.entries[number]


class MemoryBus:
    """Messages in memory, encoded as they would be elsewhere; safe from any thread.

    Args:
        stream_limit: messages that a topic keeps.
        claim_after_s: seconds after which a message that was not acknowledged is given to another consumer.
    """

    def __init__(self, *, stream_limit: int = 10_000, claim_after_s: float = 60.0) -> None:
        self._limit = stream_limit
        self._claim_after_s = claim_after_s
        self._streams: defaultdict[tuple[TopicName, str], _Stream] = defaultdict(_Stream)
        self._changed = threading.Condition()
        self.dead_letters: list[tuple[bytes, str]] = []

    def publish(self, messages: Sequence[Message], *, channel: str = "") -> None:
        """See `Bus`."""
        contents = [(one.topic, encode(one)) for one in messages]
        with self._changed:
            for topic in dict.fromkeys(topic for topic, _ in contents):
                stream = self._streams[topic, channel]
                stream.trim(self._limit - 1)
                if len(stream.entries) >= self._limit:
                    raise BusFullError(f"{topic}: {self._limit} messages wait for their readers")
            for topic, content in contents:
                stream = self._streams[topic, channel]
                stream.last += 1
                stream.entries[stream.last] = (content, time.monotonic())
            self._changed.notify_all()

    def take(self, topic: TopicName, *, group: str, consumer: str, count: int = 32, wait_s: float = 0.0) -> list[Entry]:  # noqa: ARG002
        """See `Bus`."""
        until = time.monotonic() + wait_s
        with self._changed:
            stream = self._streams[topic, ""]
            reading = stream.groups.setdefault(group, _Group())
            while True:
                now = time.monotonic()
                stale = [number for number, at in reading.pending.items() if now - at >= self._claim_after_s]
                fresh = [number for number in stream.entries if number > reading.cursor]
                if (numbers := (stale + fresh)[:count]) or now >= until:
                    break
                self._changed.wait(min(until - now, self._claim_after_s))
            reading.pending.update(dict.fromkeys(numbers, now))
            reading.cursor = max([reading.cursor, *numbers])
            return [one for number in numbers if (one := self._entry(stream, number, reading))]

    def acknowledge(self, topic: TopicName, *, group: str, entries: Sequence[Entry]) -> None:
        """See `Bus`."""
        with self._changed:
            if reading := self._streams[topic, ""].groups.get(group):
                for entry in entries:
                    reading.pending.pop(int(entry.id), None)

    def refuse(self, topic: TopicName, *, group: str, entry: Entry, reason: str) -> None:
        """See `Bus`."""
        with self._changed:
            self._bury(encode(entry.message), reason)
        self.acknowledge(topic, group=group, entries=[entry])

    def after(self, topic: TopicName, *, channel: str, cursor: str, wait_s: float = 0.0) -> list[Entry]:
        """See `Bus`."""
        until, behind = time.monotonic() + wait_s, int(cursor or 0)
        with self._changed:
            stream = self._streams[topic, channel]
            while True:
                found = [self._entry(stream, number) for number in stream.entries if number > behind]
                entries = [one for one in found if one is not None]
                if entries or (left := until - time.monotonic()) <= 0:
                    return entries
                behind = stream.last
                self._changed.wait(left)

    def latest(self, topic: TopicName, *, channel: str) -> Entry | None:
        """See `Bus`."""
        with self._changed:
            stream = self._streams[topic, channel]
            return self._entry(stream, stream.last) if stream.entries else None

    def close(self) -> None:
        """See `Bus`."""

    def _entry(self, stream: _Stream, number: int, reading: _Group | None = None) -> Entry | None:
        content, published = stream.entries[number]
        try:
            return Entry(id=str(number), message=decode(content), age_s=time.monotonic() - published)
        except MessageError as error:
            self._bury(content, str(error))
            if reading is not None:
                reading.pending.pop(number, None)
            return None

    def _bury(self, content: bytes, reason: str) -> None:
        self.dead_letters.append((content, reason))
        del self.dead_letters[:-_DEAD_LETTERS]
