"""A shared Tamiyo decides as one in process does; answers that are late, or to something else, do not count."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from esper import urza
from esper.configs import MorphogeneticConfig
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.health import HealthSignal
from esper.contracts.messages import Consultation, DecisionMade, HealthReport, Message, TopicName
from esper.errors import BusError
from esper.oona.codec import encode, message
from esper.oona.redis import RedisBus
from esper.tamiyo import LocalTamiyo
from esper.tamiyo.remote import SharedTamiyo
from esper.tamiyo.service import GROUP, TamiyoService
from tests.oona.payloads import built
from tests.oona.server import RedisServer, num_connections
from tests.tamiyo.serving import process, served
from tests.tamiyo.test_policies import signal, write_policy
from tests.urza.definitions import text

RUN = "lab/run-1"
GROWS = AdaptationDecision(should_adapt=True, site="layer1.0:after", blueprint_id="conv1x1")


def shared(
    bus: RedisBus, *, rng_seed: int = 0, run_id: str = RUN, definitions: Any = tuple, **config: Any
) -> SharedTamiyo:
    config = {"tamiyo": "shared", "policy": "heuristic", "tamiyo_deadline_s": 20.0, **config}
    return SharedTamiyo(
        bus, run_id=run_id, config=MorphogeneticConfig(**config), rng_seed=rng_seed, definitions=definitions
    )


def question(**changes: Any) -> Consultation:
    fields: dict[str, Any] = {
        "run_id": RUN, "epoch": 4, "nonce": "n", "deadline_s": 20.0, "policy": {"policy": "heuristic"}, "rng_seed": 0,
        "signals": (signal(health=0.1),),
    }  # fmt: skip
    return Consultation(**(fields | changes))


def ask(bus: RedisBus, *asked: Consultation) -> None:
    bus.publish([message(TopicName.SEED_HEALTH, one, sender=one.run_id, trace=one.run_id) for one in asked])


def answers(bus: RedisBus, run_id: str = RUN) -> list[DecisionMade]:
    payloads = [entry.message.payload for entry in bus.after(TopicName.COMMANDS, channel=run_id, cursor="")]
    return [one for one in payloads if isinstance(one, DecisionMade)]


@contextlib.contextmanager
def rogue(bus: RedisBus, answer: Callable[[Consultation], list[DecisionMade]]) -> Iterator[None]:
    """Another program answers the next question."""

    def run() -> None:
        entries, deadline = [], time.monotonic() + 20
        while not entries and time.monotonic() < deadline:
            entries = bus.take(TopicName.SEED_HEALTH, group="rogue", consumer="one", wait_s=1)
        asked = entries[0].message.payload
        assert isinstance(asked, Consultation)
        for one in answer(asked):
            bus.publish([message(TopicName.COMMANDS, one, sender="x", trace=RUN)], channel=asked.run_id)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(30)


def to(asked: Consultation, **changes: Any) -> DecisionMade:
    right = DecisionMade(run_id=asked.run_id, epoch=asked.epoch, nonce=asked.nonce, decision=GROWS)
    return dataclasses.replace(right, **changes)


# --- the same decisions -----------------------------------------------------------------------------------------------

SITES = st.just([signal(health=0.1)]) | st.lists(
    st.builds(
        lambda site, score, health, room, last, left: signal(
            site, score=score, health=health, has_room=room, last_adaptation_epoch=last, macs_left=left
        ),
        st.sampled_from(["layer1.0:after", "layer1.0:beside", "layer2.0:after", "layer3.0.conv1:parallel"]),
        st.none() | st.floats(0, 1e300),
        st.none() | st.floats(0, 1),
        st.booleans(),
        st.none() | st.integers(0, 4),
        st.none() | st.integers(0, 10_000),
    ),
    max_size=5,
)


@pytest.mark.parametrize("policy", ["never", "schedule", "random", "heuristic", "learned"])
def test_a_shared_tamiyo_decides_as_one_in_process(bus: RedisBus, tmp_path: Path, policy: str) -> None:
    config: dict[str, Any] = {"policy": policy, "schedule_at": [0.35], "fork_steps": 3, "adaptation_cooldown": 1}
    own = None
    if policy == "learned":
        own = str(write_policy(tmp_path / "p.safetensors", bias=0.1, log_score=1.0))
    kinds = set()

    @settings(max_examples=40, database=None)
    @given(SITES, st.integers(0, 9), st.integers(0, 3))
    @example([signal(health=0.1)], 4, 0)  # the schedule's time, which drawing may miss
    def agree(signals: list[HealthSignal], epoch: int, rng_seed: int) -> None:
        signals = [dataclasses.replace(one, epoch=epoch, progress=epoch / 10) for one in signals]
        local = LocalTamiyo(MorphogeneticConfig(**config, tamiyo_policy_path=own), rng_seed=rng_seed).decide(signals)
        # The run's own path is not opened by the service.
        remote = shared(bus, rng_seed=rng_seed, tamiyo_policy_path="/nowhere", **config).decide(signals)
        assert remote == local
        kinds.add(local.should_adapt)

    with served(bus, policy_path=own):
        agree()
    assert kinds == ({False} if policy == "never" else {False, True})


def test_concurrent_requests_of_many_runs_get_their_own_replies(bus: RedisBus) -> None:
    seeds = range(8)
    signals = [signal(f"layer{i}.0:after") for i in (1, 2, 3)]
    got: dict[int, list[AdaptationDecision]] = {}

    def run(seed: int) -> None:
        tamiyo = shared(bus, run_id=f"lab/run-{seed}", rng_seed=seed, policy="random")
        got[seed] = [tamiyo.decide([dataclasses.replace(s, epoch=epoch) for s in signals]) for epoch in range(5)]

    with served(bus):
        threads = [threading.Thread(target=run, args=(seed,)) for seed in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    for seed in seeds:
        alone = LocalTamiyo(MorphogeneticConfig(policy="random"), rng_seed=seed)
        assert got[seed] == [alone.decide([dataclasses.replace(s, epoch=e) for s in signals]) for e in range(5)]


# --- answers that do not count ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"nonce": "other"}, {"epoch": 3}, {"run_id": "lab/other"}])
def test_a_reply_to_another_request_is_ignored(bus: RedisBus, wrong: dict[str, Any]) -> None:
    bad = AdaptationDecision(should_adapt=False, reasoning="of somebody else")
    with rogue(bus, lambda asked: [to(asked, **wrong, decision=bad), to(asked)]):
        assert shared(bus).decide([signal()]) == GROWS


def test_a_replayed_reply_is_ignored(bus: RedisBus) -> None:
    with rogue(bus, lambda asked: [to(asked)]):
        assert shared(bus).decide([signal()]) == GROWS
    (old,) = answers(bus)
    new = AdaptationDecision(should_adapt=False, reasoning="anew")
    with rogue(bus, lambda asked: [old, old, to(asked, decision=new)]):
        assert shared(bus).decide([signal()]) == new


def test_a_late_reply_is_ignored_also_by_the_next_request(bus: RedisBus) -> None:
    def late(asked: Consultation) -> list[DecisionMade]:
        time.sleep(0.3)
        return [to(asked)]

    tamiyo = shared(bus, tamiyo_deadline_s=0.1)
    with rogue(bus, late), pytest.raises(BusError, match=r"no answer within 0\.1 s"):
        tamiyo.decide([signal()])
    with pytest.raises(BusError, match="no answer"):
        tamiyo.decide([signal()])
    assert len(answers(bus)) == 1


def in_envelope(payload: Any) -> Message:
    return message(TopicName.SEED_HEALTH, payload, sender=RUN, trace=RUN)


# --- the service ------------------------------------------------------------------------------------------------------


def test_a_request_delivered_twice_gets_one_reply_also_after_a_restart(bus: RedisBus) -> None:
    ask(bus, question(), question())
    assert TamiyoService(bus, name="a").serve_once() == 2
    ask(bus, question())
    again = TamiyoService(bus, name="a")  # knows only what is on the bus
    assert again.serve_once() == 1
    assert (len(answers(bus)), again.num_done) == (1, 0)
    ask(bus, question(nonce="m"))
    again.serve_once()
    assert [one.nonce for one in answers(bus)] == ["n", "m"]


def test_a_request_past_its_deadline_goes_to_the_dead_letters(bus: RedisBus, redis_server: RedisServer) -> None:
    ask(bus, question(deadline_s=0.01), question(run_id="lab/other"))
    time.sleep(0.05)
    TamiyoService(bus, name="a").serve_once()
    assert answers(bus) == []
    assert len(answers(bus, "lab/other")) == 1
    (letter,) = redis_server.dead_letters()
    assert re.match(rf"late: \d+\.\d s after {RUN} asked", letter[b"reason"].decode())


def test_a_request_is_answered_though_the_servers_clock_was_set_forth(bus: RedisBus, redis_server: RedisServer) -> None:
    service = TamiyoService(bus, name="a")
    assert service.serve_once() == 0
    with contextlib.closing(redis_server.admin()) as admin:  # the ID that the server gave before
        entry_id = f"{round(1000 * (time.time() - 3600))}-0"
        admin.xadd(f"esper:{TopicName.SEED_HEALTH}", {"m": encode(in_envelope(question()))}, id=entry_id)
    service.serve_once()
    assert len(answers(bus)) == 1


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ({"policy": "surprise"}, "morphogenetic.policy=surprise"),
        ({"surprise": 1}, "surprise"),
        ({"policy": 1}, "morphogenetic.policy"),
        ({"schedule_at": ["x"]}, "schedule_at"),
        ({"policy": "learned"}, "without a policy file"),
        ({"policy": "heuristic", "library": ["none@1"]}, "no blueprint 'none@1'"),
    ],
)
def test_an_invalid_policy_gets_an_error_as_reply(bus: RedisBus, policy: dict[str, Any], why: str) -> None:
    ask(bus, question(policy=policy))
    TamiyoService(bus, name="a").serve_once()
    (answer,) = answers(bus)
    assert answer.decision is None
    assert why in answer.error


def test_a_run_gets_the_reason_of_an_error(bus: RedisBus) -> None:
    with served(bus), pytest.raises(BusError, match=r"refused: .*without a policy file"):
        shared(bus, policy="learned").decide([signal()])


@pytest.mark.parametrize(
    "changes",
    [
        {"signals": (signal(health=0.1, in_shape=(2**40, 2**20, 2**20), out_shape=(2**40, 1, 1), macs_left=1),)},
        {"signals": (signal(health=0.1, in_shape=(-1, 0, 0), out_shape=(0, 0, 0), macs_left=1),)},
        {"signals": (signal(health=-1e300),)},
        {"definitions": ("{",)},
        {"definitions": ("x" * 900_000,)},
        {"policy": {"policy": "x" * 900_000}},
    ],
)
def test_an_invalid_request_gets_a_reply_and_so_does_the_next(bus: RedisBus, changes: dict[str, Any]) -> None:
    ask(bus, question(**changes), question(run_id="lab/other"))
    TamiyoService(bus, name="a").serve_once()
    (answer,) = answers(bus)
    assert len(answer.error) < 1000
    assert len(answers(bus, "lab/other")) == 1


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(built(Consultation), st.sampled_from(["heuristic", "schedule", "random", "never"]))
def test_every_request_gets_a_reply(bus: RedisBus, redis_server: RedisServer, asked: Consultation, policy: str) -> None:
    with contextlib.closing(redis_server.admin()) as admin:
        admin.flushall()
    for settings_ in (asked.policy, {"policy": policy, **asked.policy}, {"policy": policy}):
        ask(bus, dataclasses.replace(asked, policy=settings_, nonce=asked.nonce + policy, deadline_s=60.0))
        assert TamiyoService(bus, name="a").serve_once() == 1
    assert answers(bus, asked.run_id)


def test_a_request_that_is_too_long_is_a_missed_decision(bus: RedisBus) -> None:
    sites = [signal(f"layer1.{'x' * 1000}:after")] * 1000
    with pytest.raises(BusError, match="exceeds the limit"):
        shared(bus).decide(sites)


def test_telemetry_of_other_runs_does_not_delay_a_request(redis_server: RedisServer) -> None:
    redis_server.start("--appendfsync", "no")
    with contextlib.closing(redis_server.bus()) as bus, contextlib.closing(redis_server.bus()) as theirs:
        flood = [in_envelope(HealthReport(run_id="lab/other", epoch=epoch, signals=())) for epoch in range(5000)]
        bus.publish(flood)
        started = time.monotonic()
        with served(theirs):
            assert shared(bus).decide([signal(health=0.1)]).should_adapt
        assert time.monotonic() - started < 10


# --- what dies --------------------------------------------------------------------------------------------------------


def test_a_service_restarted_after_a_kill_decides_as_before(redis_server: RedisServer) -> None:
    redis_server.start()
    signals = [signal(f"layer{i}.0:after", health=0.1) for i in (1, 2)]
    with contextlib.closing(redis_server.bus()) as bus, process(redis_server.config()) as first:
        name = urza.declare(text("only_by_the_run")).blueprint_id  # the service does not know it
        config: dict[str, Any] = {"policy": "random", "blueprint": name, "library": [name]}
        alone = LocalTamiyo(MorphogeneticConfig(**config), rng_seed=3)

        def decide(epoch: int, deadline_s: float = 60.0) -> AdaptationDecision:
            told = [text("only_by_the_run")]
            tamiyo = shared(bus, rng_seed=3, tamiyo_deadline_s=deadline_s, definitions=lambda: told, **config)
            return tamiyo.decide([dataclasses.replace(one, epoch=epoch) for one in signals])

        def expected(epoch: int) -> AdaptationDecision:
            return alone.decide([dataclasses.replace(one, epoch=epoch) for one in signals])

        assert [decide(epoch) for epoch in range(4)] == [expected(epoch) for epoch in range(4)]
        assert {expected(epoch).blueprint_id for epoch in range(4)} == {None, name}
        first.kill()
        first.join()
        with pytest.raises(BusError, match="no answer"):
            decide(4, deadline_s=0.2)
        time.sleep(0.25)  # a busy machine may have asked late
        ask(bus, question(nonce="left behind", deadline_s=60.0))
        with process(redis_server.config()):
            assert [decide(epoch) for epoch in range(5, 9)] == [expected(epoch) for epoch in range(5, 9)]
            with contextlib.closing(redis_server.admin()) as admin:  # the last answer comes before its acknowledgement
                deadline = time.monotonic() + 20
                while admin.xpending(f"esper:{TopicName.SEED_HEALTH}", GROUP)["pending"]:  # type: ignore[index]
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
        nonces = [one.nonce for one in answers(bus)]
    assert len(nonces) == 9  # one was too late
    assert nonces[4] == "left behind"
    with contextlib.closing(redis_server.admin()) as admin:
        ((_, letter),) = admin.xrange("esper:dead")  # type: ignore[misc]
        assert letter[b"reason"].startswith(b"late")
        assert admin.xpending(f"esper:{TopicName.SEED_HEALTH}", GROUP)["pending"] == 0  # type: ignore[index]


@pytest.mark.parametrize("when", ["before", "while waiting"])
def test_a_server_that_hangs_costs_the_deadline_and_a_timeout_at_most(redis_server: RedisServer, when: str) -> None:
    redis_server.start()
    with contextlib.closing(redis_server.bus(timeout_s=0.5)) as bus, contextlib.closing(redis_server.admin()) as admin:
        with contextlib.suppress(BusError):  # connects; a busy machine may take longer
            bus.ping()
        before = num_connections(admin)
        hangs = threading.Timer(0.0 if when == "before" else 0.3, redis_server.stop)
        hangs.start()
        if when == "before":
            hangs.join()
        started = time.monotonic()
        with pytest.raises(BusError):
            shared(bus, tamiyo_deadline_s=1.0).decide([signal()])
        assert time.monotonic() - started < 1.0 + 0.5 + 20.0  # the machine may be busy
        hangs.join()
        redis_server.go_on()
        assert num_connections(admin) - before <= 1  # a retry would connect anew, and cost another timeout


def test_a_service_continues_after_its_server_was_unavailable(redis_server: RedisServer) -> None:
    redis_server.start()
    mine, theirs = redis_server.bus(), redis_server.bus()
    with contextlib.closing(mine), contextlib.closing(theirs), served(theirs):
        assert shared(mine).decide([signal(health=0.1)]).should_adapt
        redis_server.kill()
        with pytest.raises(BusError):
            shared(mine).decide([signal(health=0.1)])
        redis_server.start()
        assert shared(mine).decide([signal(health=0.1)]).should_adapt
