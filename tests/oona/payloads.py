"""Messages of every kind, from hypothesis."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any

from hypothesis import strategies as st

from esper.contracts.decisions import Action, AdaptationDecision
from esper.contracts.messages import KINDS, EpochReport, Message, TopicName
from esper.oona.codec import message

__all__ = ["built", "epoch_report", "messages", "numbered", "said"]

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
_DECISIONS = st.builds(
    AdaptationDecision,
    should_adapt=st.just(True),
    site=st.text(max_size=9),
    blueprint_id=st.none() | st.text(max_size=9),
    confidence=st.floats(0, 1),
    action=st.sampled_from([None, Action.GERMINATE, Action.CULL]),
    alternatives=st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), max_size=2).map(tuple),
) | st.builds(AdaptationDecision, should_adapt=st.just(False), reasoning=st.text(max_size=9))


def _values(hint: Any) -> st.SearchStrategy[Any]:
    arguments = typing.get_args(hint)
    if hint is float:
        return st.floats(allow_nan=False, allow_infinity=False)  # NaN and infinity become null, see test_codec
    if isinstance(hint, types.UnionType):
        return st.one_of([_values(one) for one in arguments])
    if arguments[1:] == (...,):
        return st.lists(_values(arguments[0]), max_size=2).map(tuple)
    if hint == dict[str, Any]:
        return st.dictionaries(st.text(max_size=9), _JSON, max_size=3)
    if typing.get_origin(hint) is dict:
        return st.dictionaries(st.text(max_size=9), _values(arguments[1]), max_size=3)
    if hint is AdaptationDecision:
        return _DECISIONS
    return built(hint) if dataclasses.is_dataclass(hint) else st.from_type(hint)


@functools.cache
def built(kind: Any) -> st.SearchStrategy[Any]:
    """Instances of a dataclass, by the types of its fields."""
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{field.name: _values(hints[field.name]) for field in dataclasses.fields(kind)})


def messages() -> st.SearchStrategy[Message]:
    """Any message."""

    def of(topic: TopicName, kind: type) -> st.SearchStrategy[Message]:
        return st.builds(
            Message, event_id=st.text(max_size=9), sender_id=st.text(max_size=9), trace_id=st.text(max_size=9),
            timestamp_unix_s=_values(float), topic=st.just(topic), payload=built(kind),
        )  # fmt: skip

    return st.one_of([of(topic, kind) for topic, taken in KINDS.items() for kind in taken])


def epoch_report(epoch: int, *, run_id: str = "lab/run") -> EpochReport:
    """A report identified by its epoch."""
    return EpochReport(
        run_id=run_id, epoch=epoch, step=10 * epoch, train_loss=0.5, train_metrics={"accuracy": 0.5}, val_loss=None,
        val_metrics={"accuracy": None}, learning_rate=0.1, adaptations_applied=0, epoch_time=1.0,
    )  # fmt: skip


def numbered(*epochs: int) -> list[Message]:
    """Messages with these epochs."""
    return [message(TopicName.EPOCHS, epoch_report(epoch), sender="test", trace="test") for epoch in epochs]


def said(entries: Any) -> list[int]:
    """The epochs of such messages."""
    return [entry.message.payload.epoch for entry in entries]
