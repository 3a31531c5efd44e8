"""Bus messages: creating, encoding as JSON, and strict decoding."""

from __future__ import annotations

import dataclasses
import time
import uuid
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from esper.contracts.messages import KINDS, Message, Payload, TopicName
from esper.errors import MessageError

__all__ = ["MAX_BYTES", "decode", "encode", "message"]

MAX_BYTES = 2**20
"""Size limit of a message; the signals of a thousand sites fit."""
_MAX_REASON = 300


class _Envelope(BaseModel):
    """`Message` as pydantic reads it; `kind` selects the payload's class."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    version: Annotated[int, Field(ge=1, le=1)]  # Literal[1] accepts true
    event_id: str
    sender_id: str
    timestamp_unix_s: float
    trace_id: str
    topic: TopicName
    payload: Annotated[Payload, Field(discriminator="kind")]


_MESSAGE: TypeAdapter[Any] = TypeAdapter(Message)


def message(topic: TopicName, payload: Payload, *, sender: str, trace: str, event_id: str | None = None) -> Message:
    """Wrap a payload in an envelope; `event_id` defaults to a random one."""
    return Message(
        event_id=event_id or uuid.uuid4().hex,
        sender_id=sender,
        timestamp_unix_s=time.time(),
        trace_id=trace,
        topic=topic,
        payload=payload,
    )


def encode(message: Message) -> bytes:
    """Encode a message as JSON; NaN and infinity become null.

    Raises:
        MessageError: the message is too long, its topic does not accept the payload, or a value has the wrong type.
    """
    _require_kind(message)
    try:
        content: bytes = _MESSAGE.dump_json(message, warnings="error")
    except (PydanticSerializationError, UnicodeError) as error:
        raise MessageError(f"a {message.payload.kind} message: {_short(str(error))}") from None
    if len(content) > MAX_BYTES:
        raise MessageError(f"a {message.payload.kind} message of {len(content)} bytes exceeds the limit of {MAX_BYTES}")
    return content


def decode(content: bytes) -> Message:
    """Decode a message; its length is checked before parsing.

    Raises:
        MessageError: it is too long, of another version, or has unknown, missing or invalid fields.
    """
    if len(content) > MAX_BYTES:
        raise MessageError(f"{len(content)} bytes exceed the limit of {MAX_BYTES}")
    try:
        envelope = _Envelope.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise MessageError(_short(f"{'.'.join(map(str, first['loc'])) or 'message'}: {first['msg']}")) from None
    message = Message(**{field.name: getattr(envelope, field.name) for field in dataclasses.fields(Message)})
    _require_kind(message)
    return message


def _require_kind(message: Message) -> None:
    if not isinstance(message.payload, KINDS[message.topic]):
        raise MessageError(f"topic {message.topic} does not accept {message.payload.kind} messages")


def _short(reason: str) -> str:
    """Truncated and printable, so safe to log: the reason may quote the sender."""
    return "".join(char if char.isprintable() else " " for char in reason[:_MAX_REASON])
