"""The forge as a service: characterises blueprints submitted on the bus and announces the kernels."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esper.configs import DatabaseConfig
from esper.contracts.messages import BlueprintSubmitted, KernelReady, TopicName
from esper.errors import ConfigError
from esper.oona.codec import message
from esper.oona.redis import Entry, RedisBus
from esper.oona.service import serve
from esper.tezzeret.characterise import SITES, Forge, characterise, jobs
from esper.tezzeret.process import WorkerStopped
from esper.urza import Blueprint, Shape
from esper.urza.records import KernelRecord
from esper.urza.store import Store, find_blueprint

__all__ = ["GROUP", "TezzeretService"]

logger = logging.getLogger(__name__)

GROUP = "tezzeret"
"""Consumer group: each submission goes to one of several forges."""
_WAIT_S = 0.5


class TezzeretService:
    """Characterises submitted blueprints until stopped; stores each kernel in the library before announcing it.

    An invalid submission becomes a dead letter, with the reason. A submission interrupted by a stop is delivered again.

    Args:
        bus: source of submissions, and where kernels are announced.
        name: of this process in the consumer group.
        forge: owner of the worker; its `stop` must be the event that stops the service.
        database: the library.
        outputs_dir: folder of the default library.
        sites: input and output shapes; a blueprint is characterised at those that it fits.
        batch_size: examples of a pass.
        compile: also measure kernels compiled.
    """

    def __init__(
        self,
        bus: RedisBus,
        *,
        name: str,
        forge: Forge,
        database: DatabaseConfig,
        outputs_dir: Path,
        sites: Sequence[tuple[Shape, Shape]] = SITES,
        batch_size: int = 128,
        compile: bool = True,
    ) -> None:
        self._bus = bus
        self._name = name
        self._forge = forge
        self._database = database
        self._outputs_dir = outputs_dir
        self._settings: dict[str, Any] = {"batch_size": batch_size, "compile": compile}
        self._sites = sites
        self._entry: Entry | None = None
        self.num_done = 0

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set; retry while the bus, the library or the worker is unavailable."""
        with contextlib.closing(self._forge):
            serve(self.serve_once, stop=stop)

    def serve_once(self) -> None:
        """Handle one submission, if there is one within half a second.

        Raises:
            EsperError: the bus, library or worker is unavailable; the next call retries the same submission.
        """
        topic = TopicName.BLUEPRINT_SUBMITTED
        if self._entry is None:
            entries = self._bus.take(topic, group=GROUP, consumer=self._name, count=1, wait_s=_WAIT_S)
            self._entry = entries[0] if entries else None
        if self._entry is None:
            return
        try:
            problem = self._characterise(self._entry)
        except WorkerStopped:
            return
        if problem:
            logger.warning("invalid submission: %s", problem)
            self._bus.refuse(topic, group=GROUP, entry=self._entry, reason=problem)
        else:
            self._bus.acknowledge(topic, group=GROUP, entries=[self._entry])
        self._entry = None
        self.num_done += 1

    def _characterise(self, entry: Entry) -> str:
        """Characterise a submission; returns why it is invalid, or an empty text."""
        submitted = entry.message.payload
        assert isinstance(submitted, BlueprintSubmitted)

        def announce(kernel: KernelRecord) -> None:
            ready = KernelReady(**dataclasses.asdict(kernel))
            key = f"{entry.message.event_id}:{kernel.in_shape}:{kernel.out_shape}"  # equal if announced twice
            event_id = uuid.uuid5(uuid.NAMESPACE_URL, key).hex
            topic, trace = TopicName.KERNEL_READY, entry.message.trace_id
            self._bus.publish([message(topic, ready, sender=self._name, trace=trace, event_id=event_id)])

        with contextlib.closing(Store(self._database, outputs_dir=self._outputs_dir, create=True)) as store:
            try:
                pending = jobs(_blueprint(submitted, store), self._sites, **self._settings)
            except ConfigError as error:
                return str(error)
            for kernel in characterise(pending, forge=self._forge, store=store, announce=announce):
                logger.info("%s at %s: %s %s", kernel.blueprint_id, kernel.in_shape, kernel.status, kernel.reason)
        return ""


def _blueprint(submitted: BlueprintSubmitted, store: Store) -> Blueprint:
    if submitted.definition is not None:
        return store.add(submitted.definition, where=submitted.blueprint_id)
    return find_blueprint(submitted.blueprint_id, store)
