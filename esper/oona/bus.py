"""What a bus does, whatever it is made of."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from esper.contracts.messages import Message, Payload, TopicName

__all__ = ["Bus", "Entry", "message"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A message as it lies on the bus.

    Attributes:
        id: its place; greater than those before it.
        message: what was published.
        age_s: seconds since then, by the bus's clock.
    """

    id: str
    message: Message
    age_s: float


class Bus(Protocol):
    """Topics to which processes publish and which groups of processes read.

    A message is delivered at least once to every group: it comes again until it is acknowledged, also to another
    consumer when the first has gone, so consumers must know what they have done already (`Message.event_id`). What is
    not acknowledged is never dropped. Messages for one reader go through a channel of a topic.

    Raises:
        BusError: from any method: the bus cannot be reached, or refuses.
    """

    def publish(self, messages: Sequence[Message], *, channel: str = "") -> None:
        """Append messages to their topics, in order.

        Raises:
            BusFullError: readers are too far behind; nothing was published.
            MessageError: a message is too long, or of a kind that its topic does not take; nothing was published.
        """
        ...

    def take(self, topic: TopicName, *, group: str, consumer: str, count: int = 32, wait_s: float = 0.0) -> list[Entry]:
        """The next messages for a group: first those that another consumer left, then new ones.

        What cannot be decoded goes to the dead letters, with the reason.
        """
        ...

    def acknowledge(self, topic: TopicName, *, group: str, entries: Sequence[Entry]) -> None:
        """Say that messages are dealt with: the group does not get them again."""
        ...

    def refuse(self, topic: TopicName, *, group: str, entry: Entry, reason: str) -> None:
        """Put a message that is of no use among the dead letters."""
        ...

    def after(self, topic: TopicName, *, channel: str, cursor: str, wait_s: float = 0.0) -> list[Entry]:
        """The messages of a channel behind a place, of which `""` is the beginning; for its one reader."""
        ...

    def latest(self, topic: TopicName, *, channel: str) -> Entry | None:
        """The last message of a channel."""
        ...

    def close(self) -> None:
        """Let go of the connection; safe to call twice."""
        ...


def message(topic: TopicName, payload: Payload, *, sender: str, trace: str, event_id: str | None = None) -> Message:
    """Put a payload into its envelope; without an `event_id` it gets a new one."""
    return Message(
        event_id=event_id or uuid.uuid4().hex,
        sender_id=sender,
        timestamp_unix_s=time.time(),
        trace_id=trace,
        topic=topic,
        payload=payload,
    )
