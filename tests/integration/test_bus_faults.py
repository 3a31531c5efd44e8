"""Real trainings, and a bus that fails them in every way: they end as without one, and nothing is delayed."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esper import cli
from esper.configs import TolariaConfig
from esper.contracts.decisions import Action, AdaptationDecision
from esper.contracts.events import EpochEnded, Event
from esper.contracts.messages import Consultation, DecisionMade, Message, TopicName
from esper.oona.codec import decode, message
from esper.oona.redis import RedisBus
from esper.tolaria import TolariaTrainer
from esper.tracking import read
from tests.conftest import journal_of, tiny_config, use
from tests.oona.server import PASSWORD, RedisServer
from tests.tamiyo.serving import process, served

CANARY = "canary-7f3a"
SPOOLED = ("decision_report", "field_report", "run")


@dataclass
class Ran:
    """What is left of a run."""

    weights: dict[str, Tensor]
    events: list[dict[str, Any]]
    train_s: float
    close_s: float
    run_dir: Path

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]

    @property
    def decisions(self) -> list[tuple[Any, ...]]:
        return [(event["decision"], event["applied"], event["outcome"]) for event in self.of_kind("decision")]

    @property
    def warnings(self) -> list[str]:
        return [event["message"] for event in self.of_kind("notice") if event["level"] == "WARNING"]


def train(
    config: TolariaConfig,
    run_dir: Path,
    *,
    before: Callable[[TolariaTrainer], object] = lambda trainer: None,
    after_epoch: Callable[[int], object] = lambda epoch: None,
) -> Ran:
    """Train to the end; `after_epoch` is called on the way, from the thread that trains."""
    trained: dict[str, Any] = {}

    def listen(event: Event) -> None:
        if isinstance(event, EpochEnded):
            after_epoch(event.epoch)

    async def body(trainer: TolariaTrainer) -> None:
        trainer.run.journal.subscribe(listen)
        before(trainer)
        started = time.monotonic()
        await trainer.train()
        trained["train_s"] = time.monotonic() - started
        trained["weights"] = {name: value.clone() for name, value in trainer.run.model.state_dict().items()}
        trained["ended"] = time.monotonic()

    use(config, run_dir, body)
    close_s = time.monotonic() - trained.pop("ended")
    return Ran(events=journal_of(run_dir), close_s=close_s, run_dir=run_dir, **trained)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The run without a server."""
    torch.set_num_threads(1)  # as for every test; sums are rounded by how they are divided
    ran = train(tiny_config(), tmp_path_factory.mktemp("memory") / "tiny" / "run")
    assert any(applied for _, applied, _ in ran.decisions)
    return ran


def over(server: RedisServer, *, timeout_s: float = 20.0, **changes: Any) -> TolariaConfig:
    """The timeout allows for a busy machine."""
    return tiny_config(
        bus="redis", redis__url=f"redis://127.0.0.1:{server.port}", redis__timeout_s=timeout_s, **changes
    )


def shared(server: RedisServer, *, deadline_s: float = 60.0, **changes: Any) -> TolariaConfig:
    asks: dict[str, Any] = {"morphogenetic__tamiyo": "shared", "morphogenetic__tamiyo_deadline_s": deadline_s}
    return over(server, **asks, **changes)


def published(server: RedisServer) -> list[Message]:
    """What runs have published, each message once."""
    found: dict[str, Message] = {}
    with contextlib.closing(server.admin()) as admin:
        for topic in TopicName:
            entries: Any = admin.xrange(f"esper:{topic}")
            found |= {one.event_id: one for _, fields in entries for one in [decode(fields[b"m"])]}
    return list(found.values())


def assert_same_weights(ran: Ran, expected: Ran) -> None:
    assert ran.weights.keys() == expected.weights.keys()
    assert [name for name, value in ran.weights.items() if not torch.equal(value, expected.weights[name])] == []


def assert_all_spooled_arrived(server: RedisServer, ran: Ran) -> None:
    counts = Counter(one.payload.kind for one in published(server))
    journalled = Counter(event["kind"] for event in ran.events)
    assert {kind: counts[kind] for kind in SPOOLED} == {
        "decision_report": journalled["decision"],
        "field_report": journalled["judgement"],
        "run": journalled["run_started"] + journalled["run_ended"],
    }
    assert journalled["judgement"] > 0


def catch_up(ran: Ran) -> None:
    """What `esper sync` does for the bus."""
    events = list(read(ran.run_dir / "journal.jsonl"))
    (target,) = cli._buses(ran.of_kind("run_started")[0]["config"], ran.run_dir, url=None)
    with contextlib.closing(target.open()) as run:
        run.ingest(events)


# --- the run decides itself -------------------------------------------------------------------------------------------


def test_a_run_is_published_and_trains_as_without_a_bus(
    redis_server: RedisServer, run_dir: Path, expected: Ran
) -> None:
    ran = train(over(redis_server.start()), run_dir)
    assert_same_weights(ran, expected)
    assert ran.decisions == expected.decisions
    assert_all_spooled_arrived(redis_server, ran)
    counts = Counter(one.payload.kind for one in published(redis_server))
    assert (counts["epoch"], counts["health"]) == (3, len(ran.of_kind("signals")))
    assert ran.warnings == []


def test_a_server_that_is_down_changes_nothing_and_everything_arrives_later(
    redis_server: RedisServer, run_dir: Path, expected: Ran
) -> None:
    ran = train(over(redis_server), run_dir)
    assert_same_weights(ran, expected)
    (warning,) = ran.warnings
    assert "is behind (" in warning
    redis_server.start()
    catch_up(ran)
    assert_all_spooled_arrived(redis_server, ran)


def test_a_server_that_is_killed_and_restarted_in_mid_run_misses_nothing(
    redis_server: RedisServer, run_dir: Path, expected: Ran
) -> None:
    redis_server.start()
    acts = {1: redis_server.kill, 2: redis_server.start}
    ran = train(over(redis_server), run_dir, after_epoch=lambda epoch: acts.get(epoch, int)())
    assert_same_weights(ran, expected)
    assert_all_spooled_arrived(redis_server, ran)


@pytest.mark.parametrize("outlasts_run", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_server_that_hangs_delays_no_step_and_the_end_not_much(
    redis_server: RedisServer, run_dir: Path, expected: Ran, outlasts_run: bool
) -> None:
    redis_server.start()
    goes_on, others = threading.Timer(1.0, redis_server.go_on), set(threading.enumerate())

    def hang(epoch: int) -> None:
        if epoch == 1:
            redis_server.stop()
            if not outlasts_run:
                goes_on.start()

    # A step, or the end, that waited for an answer would wait for 60 s; the end waits for 15 s at most.
    ran = train(over(redis_server, timeout_s=60.0), run_dir, after_epoch=hang)
    assert_same_weights(ran, expected)
    assert ran.train_s < 45
    assert ran.close_s < 45
    if outlasts_run:
        redis_server.go_on()
    for thread in set(threading.enumerate()) - others:  # what the run had under way arrives
        thread.join(30)
    catch_up(ran)
    assert_all_spooled_arrived(redis_server, ran)


def test_a_slow_server_delays_no_step(redis_server: RedisServer, run_dir: Path, expected: Ran) -> None:
    redis_server.start()
    with contextlib.closing(redis_server.admin()) as admin:
        admin.client_pause(1500, all=True)
    ran = train(over(redis_server, timeout_s=60.0), run_dir)
    assert_same_weights(ran, expected)
    assert_all_spooled_arrived(redis_server, ran)
    assert ran.warnings == []


def test_a_wrong_password_changes_nothing_and_is_told_to_nobody(
    redis_server: RedisServer, run_dir: Path, expected: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_server.start()
    monkeypatch.setenv("ESPER_REDIS_PASSWORD", f"{CANARY}-wrong")
    ran = train(over(redis_server), run_dir)
    assert_same_weights(ran, expected)
    (warning,) = ran.warnings
    assert "ESPER_REDIS_PASSWORD" in warning
    files = [file.read_bytes() for file in run_dir.rglob("*") if file.is_file()]
    assert files
    assert [file for file in files if CANARY.encode() in file] == []
    monkeypatch.setenv("ESPER_REDIS_PASSWORD", PASSWORD)
    catch_up(ran)
    assert_all_spooled_arrived(redis_server, ran)


def test_a_password_in_the_url_of_the_environment_is_not_written_down(
    redis_server: RedisServer, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_server.start()
    monkeypatch.setenv("ESPER_REDIS_URL", f"redis://default:{PASSWORD}@127.0.0.1:{redis_server.port}")
    ran = train(tiny_config(bus="redis"), run_dir, after_epoch=lambda epoch: redis_server.kill())
    assert len(ran.warnings) == 1
    assert [file for file in run_dir.rglob("*") if file.is_file() and CANARY.encode() in file.read_bytes()] == []


def test_a_full_server_changes_nothing_and_gets_decisions_and_outcomes_later(
    redis_server: RedisServer, run_dir: Path, expected: Ran
) -> None:
    redis_server.start("--maxmemory", "1", "--maxmemory-policy", "noeviction")
    ran = train(over(redis_server), run_dir)
    assert_same_weights(ran, expected)
    (warning,) = ran.warnings
    assert "maxmemory" in warning
    with contextlib.closing(redis_server.admin()) as admin:
        admin.config_set("maxmemory", 0)
    catch_up(ran)
    assert_all_spooled_arrived(redis_server, ran)


# --- a shared Tamiyo decides ------------------------------------------------------------------------------------------


def test_with_a_shared_tamiyo_a_run_grows_as_with_its_own(
    redis_server: RedisServer, run_dir: Path, expected: Ran
) -> None:
    redis_server.start()
    with process(redis_server.config()):
        ran = train(shared(redis_server), run_dir)
    assert_same_weights(ran, expected)
    assert ran.decisions == expected.decisions
    with contextlib.closing(redis_server.admin()) as admin:
        assert len(admin.client_list()) == 1  # the run has let go


def test_a_run_with_a_shared_policy_file_needs_none_of_its_own(redis_server: RedisServer, run_dir: Path) -> None:
    redis_server.start()
    ran = train(shared(redis_server, deadline_s=0.2, morphogenetic__policy="learned"), run_dir)
    assert ran.of_kind("run_ended")[0]["status"] == "finished"


def assert_all_missed(ran: Ran, why: str) -> None:
    assert ran.of_kind("run_ended")[0]["status"] == "finished"
    outcomes = [outcome for _, _, outcome in ran.decisions]
    assert len(outcomes) == len(ran.of_kind("signals")) > 0
    assert [outcome for outcome in outcomes if not (outcome.startswith("missed: ") and why in outcome)] == []
    assert ran.of_kind("surgery") == []


@pytest.mark.parametrize("fault", ["nobody serves", "down", "hangs", "wrong password", "full"])
def test_without_an_answer_a_run_goes_on_and_every_missed_decision_is_journalled(
    redis_server: RedisServer, run_dir: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault != "down":
        redis_server.start(*(["--maxmemory", "1"] if fault == "full" else []))
    if fault == "hangs":
        redis_server.stop()
    if fault == "wrong password":
        monkeypatch.setenv("ESPER_REDIS_PASSWORD", f"{CANARY}-wrong")

    def ask_briefly(trainer: TolariaTrainer) -> None:  # unlike the setting, this does not limit the server's replies
        if fault == "nobody serves":
            client: Any = trainer.run.growth.tamiyo
            client._config.tamiyo_deadline_s = 0.3

    limits = {"deadline_s": 0.3, "timeout_s": 0.3} if fault == "hangs" else {}
    ran = train(shared(redis_server, **limits), run_dir, before=ask_briefly)
    assert_all_missed(ran, {"nobody serves": "no answer within", "full": "maxmemory"}.get(fault, "redis://127.0.0.1"))
    assert CANARY not in (run_dir / "journal.jsonl").read_text()


def test_a_tamiyo_that_is_killed_is_missed_until_she_is_back(redis_server: RedisServer, run_dir: Path) -> None:
    redis_server.start()
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(process(redis_server.config()))
        clients: list[Any] = []

        def act(epoch: int) -> None:
            if epoch == 2:
                first.kill()
                first.join()
            if epoch == 3:
                stack.enter_context(process(redis_server.config()))
            clients[0]._config.tamiyo_deadline_s = 1.0 if epoch == 2 else 60.0  # only then nobody answers

        config = shared(redis_server, optimization__max_epochs=6, morphogenetic__schedule_at=[0.4])
        ran = train(config, run_dir, before=lambda trainer: clients.append(trainer.run.growth.tamiyo), after_epoch=act)
    outcomes = [(event["epoch"], event["outcome"].partition(":")[0]) for event in ran.of_kind("decision")]
    assert outcomes[:2] == [(1, "no change was requested"), (2, "missed")]
    assert outcomes[2][0] == 3
    assert outcomes[2][1].startswith("germinated")


ROGUE = AdaptationDecision(
    should_adapt=True, site="layer9.0:after", alternatives=(("layer8.0:after", "x"), ("layer1.0:after", "x"))
)
NONSENSE = [
    ROGUE,
    AdaptationDecision(should_adapt=True, target_layer="nowhere"),
    AdaptationDecision(should_adapt=True, site="layer1.0:after", blueprint_id="x" * 1000),
    AdaptationDecision(should_adapt=True, site="layer1.0:after", action=Action.CULL),
]


@contextlib.contextmanager
def rogue(bus: RedisBus, decision: AdaptationDecision) -> Iterator[None]:
    """Somebody who gives every question the same answer."""
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            for entry in bus.take(TopicName.SEED_HEALTH, group="rogue", consumer="one", wait_s=0.1):
                if isinstance(asked := entry.message.payload, Consultation):
                    told = DecisionMade(run_id=asked.run_id, epoch=asked.epoch, nonce=asked.nonce, decision=decision)
                    answer = message(TopicName.COMMANDS, told, sender="rogue", trace="x")
                    bus.publish([answer], channel=asked.run_id)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)


@pytest.mark.parametrize("decision", NONSENSE)
def test_an_answer_that_makes_no_sense_is_refused_and_the_run_goes_on(
    redis_server: RedisServer, run_dir: Path, decision: AdaptationDecision
) -> None:
    redis_server.start()
    with contextlib.closing(redis_server.bus()) as bus, rogue(bus, decision):
        config = shared(redis_server, morphogenetic__policy="heuristic", morphogenetic__fork_steps=2)
        ran = train(config, run_dir)
    assert ran.of_kind("run_ended")[0]["status"] == "finished"
    assert ran.decisions
    assert not any(applied for _, applied, _ in ran.decisions)


def test_a_flood_of_messages_leaves_a_run_and_its_tamiyo_alone(
    redis_server: RedisServer, run_dir: Path, expected: Ran
) -> None:
    redis_server.start("--appendfsync", "no")
    with contextlib.closing(redis_server.admin()) as admin, admin.pipeline() as flood:
        for number in range(3000):
            flood.xadd(f"esper:{TopicName.SEED_HEALTH}", {"m": f"rubbish {number}"})
        flood.execute()
        with contextlib.closing(redis_server.bus()) as bus, served(bus):
            ran = train(shared(redis_server), run_dir)
        assert admin.xlen("esper:dead") >= 1000  # type: ignore[operator]
    assert_same_weights(ran, expected)
    assert ran.decisions == expected.decisions
