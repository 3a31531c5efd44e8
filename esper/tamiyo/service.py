"""Tamiyo as a service: reads health signals of many runs from the bus, and answers with decisions."""

from __future__ import annotations

import functools
import json
import threading
import uuid
from pathlib import Path

from esper import urza
from esper.configs import MorphogeneticConfig
from esper.configs.check import check_group
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.messages import Consultation, DecisionMade, TopicName
from esper.errors import EsperError
from esper.oona.codec import message
from esper.oona.redis import Entry, RedisBus
from esper.oona.service import serve
from esper.tamiyo.client import LocalTamiyo

__all__ = ["GROUP", "TamiyoService"]

GROUP = "tamiyo"
"""Several services share the questions."""
_WAIT_S = 0.5
_MAX_POLICIES = 256
_MAX_PROBLEM = 500


class TamiyoService:
    """Answers consultations until it is stopped.

    A run's state is the last answer on its channel, which any of several services can read. A question that comes
    twice is answered once, one whose deadline is over not at all.

    Args:
        bus: where it reads and answers.
        name: of this process, among those that share the questions.
        policy_path: the policy file of runs with `policy=learned`; their own path is not opened here.
    """

    def __init__(self, bus: RedisBus, *, name: str, policy_path: str | None = None) -> None:
        self._bus = bus
        self._name = name
        self._policy_path = policy_path
        self.num_done = 0
        self._tamiyo = functools.lru_cache(maxsize=_MAX_POLICIES)(self._policy)

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set; what was taken by then is answered. While the bus is away, try again and again."""
        serve(lambda: self.serve_once(wait_s=_WAIT_S), stop=stop)

    def serve_once(self, *, wait_s: float = 0.0) -> int:
        """Answer what has come in; returns how many messages were dealt with.

        Raises:
            BusError: the bus is away; what was not acknowledged comes again.
        """
        entries = self._bus.take(TopicName.SEED_HEALTH, group=GROUP, consumer=self._name, wait_s=wait_s)
        reports = [entry for entry in entries if not isinstance(entry.message.payload, Consultation)]
        self._bus.acknowledge(TopicName.SEED_HEALTH, group=GROUP, entries=reports)
        for entry in entries:
            question = entry.message.payload
            if not isinstance(question, Consultation):
                continue
            if entry.age_s <= question.deadline_s:
                self._answer(question)
                self._bus.acknowledge(TopicName.SEED_HEALTH, group=GROUP, entries=[entry])
            else:
                self._bus.refuse(TopicName.SEED_HEALTH, group=GROUP, entry=entry, reason=_late(entry, question))
        return len(entries)

    def _answer(self, question: Consultation) -> None:
        if self._last_nonce(question.run_id) == question.nonce:
            return
        decision, problem = None, ""
        try:
            decision = self._decide(question)
        except EsperError as error:
            problem = str(error)
        except Exception as error:  # settings and shapes are the sender's: torch and Python may raise anything
            problem = f"{type(error).__name__}: {error}"
        answer = DecisionMade(
            run_id=question.run_id,
            epoch=question.epoch,
            nonce=question.nonce,
            decision=decision,
            error=problem[:_MAX_PROBLEM],
        )
        event_id = uuid.uuid5(uuid.NAMESPACE_URL, question.nonce).hex
        envelope = message(TopicName.COMMANDS, answer, sender=self._name, trace=question.run_id, event_id=event_id)
        self._bus.publish([envelope], channel=question.run_id)
        self.num_done += 1

    def _decide(self, question: Consultation) -> AdaptationDecision:
        for definition in question.definitions:
            urza.declare(definition)
        settings = dict(question.policy) | {"tamiyo_policy_path": self._policy_path}
        tamiyo = self._tamiyo(json.dumps(settings, sort_keys=True), question.rng_seed)
        return tamiyo.decide(question.signals)

    @staticmethod
    def _policy(settings: str, rng_seed: int) -> LocalTamiyo:
        config = MorphogeneticConfig(**json.loads(settings))
        check_group(config, prefix="morphogenetic.")
        if config.policy == "learned" and not (config.tamiyo_policy_path and Path(config.tamiyo_policy_path).is_file()):
            raise EsperError("policy=learned: this service was started without a policy file (--policy FILE)")
        return LocalTamiyo(config, rng_seed=rng_seed)

    def _last_nonce(self, run_id: str) -> str:
        latest = self._bus.latest(TopicName.COMMANDS, channel=run_id)
        answer = latest.message.payload if latest else None
        return answer.nonce if isinstance(answer, DecisionMade) else ""


def _late(entry: Entry, question: Consultation) -> str:
    return f"late: {entry.age_s:.1f} s after {question.run_id} asked, which waited for {question.deadline_s:g} s"
