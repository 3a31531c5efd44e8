"""The client of a Tamiyo service: requests over the bus, with a deadline."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable, Sequence

from esper.configs import MorphogeneticConfig
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.health import HealthSignal
from esper.contracts.messages import Consultation, DecisionMade, TopicName
from esper.errors import BusError, MessageError
from esper.oona.codec import message
from esper.oona.redis import RedisBus

__all__ = ["SharedTamiyo"]


class SharedTamiyo:
    """Client of a Tamiyo service that many runs share; decisions are the same as those of `LocalTamiyo`.

    A reply is accepted if its run, epoch and nonce are those of the request and it arrives by the deadline; others are
    ignored.

    Args:
        bus: carries requests and replies.
        run_id: name of the run on the bus.
        config: the run's growth settings, among them policy and deadline.
        rng_seed: the run's random seed.
        definitions: returns the blueprints of the library that may grow, in JSON; called for every request.
    """

    def __init__(
        self,
        bus: RedisBus,
        *,
        run_id: str,
        config: MorphogeneticConfig,
        rng_seed: int,
        definitions: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._bus = bus
        self._run_id = run_id
        self._config = config
        self._rng_seed = rng_seed
        self._definitions = definitions

    def decide(self, signals: Sequence[HealthSignal]) -> AdaptationDecision:
        """Send a request and wait for the reply until the deadline.

        Raises:
            BusError: no reply in time, the service reported an error, or the request cannot be sent; the run continues
                without adaptation.
        """
        deadline = time.monotonic() + self._config.tamiyo_deadline_s
        request = Consultation(
            run_id=self._run_id,
            epoch=signals[0].epoch if signals else 0,
            nonce=uuid.uuid4().hex,
            deadline_s=self._config.tamiyo_deadline_s,
            policy=dataclasses.asdict(self._config),
            rng_seed=self._rng_seed,
            signals=tuple(signals),
            definitions=tuple(self._definitions()),
        )
        latest = self._bus.latest(TopicName.COMMANDS, channel=self._run_id)
        cursor = latest.id if latest else ""
        try:
            self._bus.publish([message(TopicName.SEED_HEALTH, request, sender=self._run_id, trace=self._run_id)])
        except MessageError as error:
            raise BusError(f"the request to the shared Tamiyo cannot be sent: {error}") from None
        while (left := deadline - time.monotonic()) > 0:
            for entry in self._bus.after(TopicName.COMMANDS, channel=self._run_id, cursor=cursor, wait_s=left):
                cursor = entry.id
                reply = entry.message.payload
                if _answers(request, reply) and time.monotonic() <= deadline:
                    assert isinstance(reply, DecisionMade)
                    if reply.decision is None:
                        raise BusError(f"the shared Tamiyo refused: {reply.error}")
                    return reply.decision
        raise BusError(f"the shared Tamiyo gave no answer within {self._config.tamiyo_deadline_s:g} s")

    def close(self) -> None:
        """Close the bus."""
        self._bus.close()


def _answers(request: Consultation, reply: object) -> bool:
    return (
        isinstance(reply, DecisionMade)
        and reply.nonce == request.nonce
        and reply.run_id == request.run_id
        and reply.epoch == request.epoch
    )
