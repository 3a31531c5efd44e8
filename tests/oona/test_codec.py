"""Encoding and strict decoding of messages."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from esper.contracts.messages import Consultation, EpochReport, HealthReport, Message, TopicName
from esper.errors import MessageError
from esper.oona import codec
from esper.oona.codec import MAX_BYTES, decode, encode
from tests.oona.payloads import epoch_report, messages, numbered

quick = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def refused(content: bytes) -> str:
    with pytest.raises(MessageError) as caught:
        decode(content)
    return str(caught.value)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in a parsed message, except those of policy and metrics, which may have any fields."""
    if path and path[-1] in ("policy", "train_metrics", "val_metrics", "test_metrics"):
        return []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


@quick
@given(messages())
def test_every_message_survives_encoding_and_decoding(one: Message) -> None:
    assert decode(encode(one)) == one


@quick
@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_arbitrary_bytes_are_refused(content: bytes) -> None:
    refused(content)


@quick
@given(messages(), st.data())
def test_a_message_with_changed_bytes_is_refused_or_decodes_to_a_message(one: Message, data: st.DataObject) -> None:
    content = bytearray(encode(one))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MessageError):
        assert isinstance(decode(bytes(content)), Message)


@quick
@given(messages(), st.data())
def test_an_unknown_field_is_refused_wherever_it_is(one: Message, data: st.DataObject) -> None:
    parsed = json.loads(encode(one))
    where = data.draw(st.sampled_from([path for path in places(parsed) if isinstance(at(parsed, path), dict)]))
    at(parsed, where)["surprise"] = 1
    assert "surprise" in refused(json.dumps(parsed).encode())


@quick
@given(messages(), st.data())
def test_a_value_of_another_type_is_refused_wherever_it_is(one: Message, data: st.DataObject) -> None:
    parsed = json.loads(encode(one))
    where = data.draw(st.sampled_from([path for path in places(parsed) if path]))
    old, new = at(parsed, where), data.draw(st.sampled_from(["x", 1.5, True, None, [], {}, {"kind": "epoch"}]))
    assume(type(new) is not type(old) and old is not None)
    assume(not (isinstance(old, int | float) and isinstance(new, float)))
    at(parsed, where[:-1])[where[-1]] = new
    try:
        decode(json.dumps(parsed).encode())
    except MessageError:
        return
    assert new is None  # some fields are optional


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"version": 2}, "version"),
        ({"version": "1"}, "version"),
        ({"version": True}, "version"),
        ({"topic": "system.events.nothing"}, "topic"),
        ({"topic": "system.events.run"}, "does not accept epoch messages"),
        ({"payload": {"kind": "surprise"}}, "payload"),
        ({"payload": None}, "payload"),
        ({"timestamp_unix_s": "1"}, "timestamp_unix_s"),
    ],
)
def test_a_message_of_another_version_topic_or_kind_is_refused(changes: dict[str, Any], why: str) -> None:
    (one,) = numbered(1)
    assert why in refused(json.dumps(json.loads(encode(one)) | changes).encode())


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Message)])
def test_a_message_without_a_field_is_refused(name: str) -> None:
    (one,) = numbered(1)
    parsed = json.loads(encode(one))
    del parsed[name]
    assert name in refused(json.dumps(parsed).encode())


def test_a_message_that_is_too_long_is_refused_before_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(codec, "_Envelope")  # parsing would fail
    assert "exceed the limit of 1048576" in refused(b"{" * (MAX_BYTES + 1))


@pytest.mark.parametrize("content", [b"[" * 100_000, b"9" * 100_000, b'{"version": ' + b"9" * 5000 + b"}"])
def test_deeply_nested_or_huge_json_is_refused(content: bytes) -> None:
    refused(content)


def test_errors_quote_no_long_or_unprintable_content() -> None:
    (one,) = numbered(1)
    parsed = json.loads(encode(one))
    for changes in ({"x" * 100_000: 1}, {"payload": {"kind": "\x1b[31m\n" * 50_000}}):
        told = refused(json.dumps(parsed | changes).encode())
        assert len(told) < 500
        assert told.isprintable()


def test_a_message_that_is_too_long_is_not_sent() -> None:
    (one,) = numbered(1)
    with pytest.raises(MessageError, match="exceeds the limit"):
        encode(dataclasses.replace(one, sender_id="x" * MAX_BYTES))


@pytest.mark.parametrize("changes", [{"sender_id": "\udcff"}, {"payload": epoch_report("one")}])  # type: ignore[arg-type]
def test_a_message_that_cannot_be_decoded_is_not_sent(changes: dict[str, Any]) -> None:
    (one,) = numbered(1)
    with pytest.raises(MessageError):
        encode(dataclasses.replace(one, **changes))


def test_a_payload_on_the_wrong_topic_is_not_sent() -> None:
    (one,) = numbered(1)
    with pytest.raises(MessageError, match="does not accept epoch"):
        encode(dataclasses.replace(one, topic=TopicName.RUNS))


def test_nan_and_infinity_become_null() -> None:
    (one,) = numbered(1)
    payload = dataclasses.replace(epoch_report(1), train_loss=math.nan, learning_rate=math.inf)
    back = decode(encode(dataclasses.replace(one, payload=payload))).payload
    assert isinstance(back, EpochReport)
    assert (back.train_loss, back.learning_rate) == (None, None)


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"1e999"])
def test_nan_and_infinity_are_refused(value: bytes) -> None:
    (one,) = numbered(1)
    refused(encode(one).replace(b'"train_loss":0.5', b'"train_loss":' + value))


def test_the_signals_of_a_thousand_sites_fit_in_a_message() -> None:
    from tests.tamiyo.test_policies import signal

    signals = tuple(signal(f"layer1.{i}.block.conv2:parallel", score=0.1234567890123 * i) for i in range(1000))
    for payload in (
        HealthReport(run_id="lab/run", epoch=1, signals=signals),
        Consultation(
            run_id="lab/run", epoch=1, nonce="n", deadline_s=1, policy={}, rng_seed=0, signals=signals, definitions=()
        ),
    ):
        (one,) = numbered(1)
        one = dataclasses.replace(one, topic=TopicName.SEED_HEALTH, payload=payload)
        assert len(encode(one)) < MAX_BYTES
