"""Tamiyo as a service: reads the health signals of many runs from the bus and replies with decisions."""

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
"""Consumer group: several services share the requests."""
_WAIT_S = 0.5
_MAX_POLICIES = 256
_MAX_PROBLEM = 500


class TamiyoService:
    """Replies to consultations until it is stopped.

    The only state is the latest reply on each run's channel, which all services can read: a request delivered twice
    gets one reply, and one whose deadline has passed gets none.

    Args:
        bus: carries requests and replies.
        name: consumer name of this process in the group.
        policy_path: the policy file for runs with `policy=learned`; their own path is not opened here.
    """

    def __init__(self, bus: RedisBus, *, name: str, policy_path: str | None = None) -> None:
        self._bus = bus
        self._name = name
        self._policy_path = policy_path
        self.num_done = 0
        self._tamiyo = functools.lru_cache(maxsize=_MAX_POLICIES)(self._build)

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set, and finish requests already taken; retry while the bus is unavailable."""
        serve(lambda: self.serve_once(wait_s=_WAIT_S), stop=stop)

    def serve_once(self, *, wait_s: float = 0.0) -> int:
        """Process the pending messages; returns their number.

        Raises:
            BusError: the bus is unavailable; messages not acknowledged will be delivered again.
        """
        entries = self._bus.take(TopicName.SEED_HEALTH, group=GROUP, consumer=self._name, wait_s=wait_s)
        reports = [entry for entry in entries if not isinstance(entry.message.payload, Consultation)]
        self._bus.acknowledge(TopicName.SEED_HEALTH, group=GROUP, entries=reports)
        for entry in entries:
            request = entry.message.payload
            if not isinstance(request, Consultation):
                continue
            if entry.age_s <= request.deadline_s:
                self._reply(request)
                self._bus.acknowledge(TopicName.SEED_HEALTH, group=GROUP, entries=[entry])
            else:
                self._bus.refuse(TopicName.SEED_HEALTH, group=GROUP, entry=entry, reason=_late(entry, request))
        return len(entries)

    def _reply(self, request: Consultation) -> None:
        if self._last_nonce(request.run_id) == request.nonce:
            return
        decision, problem = None, ""
        try:
            decision = self._decide(request)
        except EsperError as error:
            problem = str(error)
        except Exception as error:  # settings and shapes are the sender's: torch and Python may raise anything
            problem = f"{type(error).__name__}: {error}"
        reply = DecisionMade(
            run_id=request.run_id,
            epoch=request.epoch,
            nonce=request.nonce,
            decision=decision,
            error=problem[:_MAX_PROBLEM],
        )
        event_id = uuid.uuid5(uuid.NAMESPACE_URL, request.nonce).hex
        envelope = message(TopicName.COMMANDS, reply, sender=self._name, trace=request.run_id, event_id=event_id)
        self._bus.publish([envelope], channel=request.run_id)
        self.num_done += 1

    def _decide(self, request: Consultation) -> AdaptationDecision:
        for definition in request.definitions:
            urza.declare(definition)
        settings = dict(request.policy) | {"tamiyo_policy_path": self._policy_path}
        return self._tamiyo(json.dumps(settings, sort_keys=True), request.rng_seed).decide(request.signals)

    @staticmethod
    def _build(settings: str, rng_seed: int) -> LocalTamiyo:
        config = MorphogeneticConfig(**json.loads(settings))
        check_group(config, prefix="morphogenetic.")
        if config.policy == "learned" and not (config.tamiyo_policy_path and Path(config.tamiyo_policy_path).is_file()):
            raise EsperError("policy=learned: this service was started without a policy file (--policy FILE)")
        return LocalTamiyo(config, rng_seed=rng_seed)

    def _last_nonce(self, run_id: str) -> str:
        latest = self._bus.latest(TopicName.COMMANDS, channel=run_id)
        reply = latest.message.payload if latest else None
        return reply.nonce if isinstance(reply, DecisionMade) else ""


def _late(entry: Entry, request: Consultation) -> str:
    return f"late: {entry.age_s:.1f} s after {request.run_id} asked, its deadline was {request.deadline_s:g} s"
