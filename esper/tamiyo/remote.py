"""Tamiyo elsewhere: asked over the bus, with a deadline."""

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
    """The client of a Tamiyo that serves many runs: the same policies, so the same decisions as in process.

    An answer counts if it is to the question asked now: of this run, epoch and nonce, and in time. Any other is
    ignored.

    Args:
        bus: where she is asked.
        run_id: name of the run on the bus.
        config: the run's settings of growth; its policy and its deadline.
        rng_seed: the run's random seed.
        definitions: blueprints of the library that may grow, in JSON; asked for with every question.
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
        self.num_ignored = 0

    def decide(self, signals: Sequence[HealthSignal]) -> AdaptationDecision:
        """Ask, and wait for the answer until the deadline.

        Raises:
            BusError: there was none, she refused, or she cannot be asked; the run goes on unadapted.
        """
        until = time.monotonic() + self._config.tamiyo_deadline_s
        question = Consultation(
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
        asked = message(TopicName.SEED_HEALTH, question, sender=self._run_id, trace=self._run_id)
        try:
            self._bus.publish([asked])
        except MessageError as error:
            raise BusError(f"the shared Tamiyo cannot be asked: {error}") from None
        while (left := until - time.monotonic()) > 0:
            for entry in self._bus.after(TopicName.COMMANDS, channel=self._run_id, cursor=cursor, wait_s=left):
                cursor = entry.id
                answer = entry.message.payload
                if self._is_to(question, answer) and time.monotonic() <= until:
                    assert isinstance(answer, DecisionMade)
                    if answer.decision is None:
                        raise BusError(f"the shared Tamiyo refused: {answer.error}")
                    return answer.decision
                self.num_ignored += 1
        raise BusError(f"the shared Tamiyo gave no answer within {self._config.tamiyo_deadline_s:g} s")

    def close(self) -> None:
        """Let go of the bus."""
        self._bus.close()

    @staticmethod
    def _is_to(question: Consultation, answer: object) -> bool:
        return (
            isinstance(answer, DecisionMade)
            and answer.nonce == question.nonce
            and answer.run_id == question.run_id
            and answer.epoch == question.epoch
        )
