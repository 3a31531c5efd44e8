"""Messages as bytes: JSON, decoded strictly."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from esper.contracts.messages import KINDS, Message, Payload, TopicName
from esper.errors import MessageError

__all__ = ["MAX_BYTES", "decode", "encode"]

MAX_BYTES = 2**20
"""Longest message; a network of a thousand sites needs less."""
_REASON_LENGTH = 300


class _Envelope(BaseModel):
    """`Message`, its payload told apart by its kind."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    version: Annotated[int, Field(ge=1, le=1)]  # Literal[1] accepts true
    event_id: str
    sender_id: str
    timestamp_unix_s: float
    trace_id: str
    topic: TopicName
    payload: Annotated[Payload, Field(discriminator="kind")]


_MESSAGE: TypeAdapter[Any] = TypeAdapter(Message)


def encode(message: Message) -> bytes:
    """A message as JSON; figures that are not finite become null.

    Raises:
        MessageError: it is too long, its topic takes no such payload, or a value is not of the declared type.
    """
    _require_kind(message)
    try:
        content: bytes = _MESSAGE.dump_json(message, warnings="error")
    except (PydanticSerializationError, UnicodeError) as error:
        raise MessageError(f"a {message.payload.kind} message: {_short(str(error))}") from None
    if len(content) > MAX_BYTES:
        raise MessageError(f"a {message.payload.kind} message of {len(content)} bytes: allowed are {MAX_BYTES}")
    return content


def decode(content: bytes) -> Message:
    """The message that bytes hold; nothing is parsed that is too long.

    Raises:
        MessageError: it is no message of this version, or has unknown, missing or unsuitable fields.
    """
    if len(content) > MAX_BYTES:
        raise MessageError(f"{len(content)} bytes: allowed are {MAX_BYTES}")
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
        raise MessageError(f"topic {message.topic} takes no {message.payload.kind} messages")


def _short(reason: str) -> str:
    """What may be logged; it may repeat what the sender wrote."""
    return "".join(letter if letter.isprintable() else " " for letter in reason[:_REASON_LENGTH])
