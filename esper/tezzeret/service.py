"""The forge as a service: blueprints are submitted on the bus, and kernels announced there."""

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
from esper.tezzeret.process import Stopped
from esper.urza import Blueprint, Shape
from esper.urza.records import KernelRecord
from esper.urza.store import Store, find_blueprint

__all__ = ["GROUP", "TezzeretService"]

logger = logging.getLogger(__name__)

GROUP = "tezzeret"
"""Several forges share what is submitted."""
_WAIT_S = 0.5


class TezzeretService:
    """Characterises what is submitted until it is stopped; each kernel is in the library before it is announced.

    A submission that cannot be used goes to the dead letters, with the reason. One under way at a stop is given up, and
    comes again.

    Args:
        bus: where it reads and announces.
        name: of this process, among those that share the work.
        forge: who does it; made with the event that stops the service.
        database: which library.
        outputs_dir: folder in which the default one lies.
        sites: shapes at which blueprints are characterised where they fit.
        batch_size: examples of a pass.
        compile: whether to measure them compiled as well.
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
        """Serve until `stop` is set; while the bus or the library is away, or no worker starts, try again."""
        with contextlib.closing(self._forge):
            serve(self.serve_once, stop=stop)

    def serve_once(self) -> None:
        """Deal with one submission, if one comes soon.

        Raises:
            EsperError: something is away; called again, it goes on with the same submission.
        """
        topic = TopicName.BLUEPRINT_SUBMITTED
        if self._entry is None:
            entries = self._bus.take(topic, group=GROUP, consumer=self._name, count=1, wait_s=_WAIT_S)
            self._entry = entries[0] if entries else None
        if self._entry is None:
            return
        try:
            problem = self._characterise(self._entry)
        except Stopped:
            return
        if problem:
            logger.warning("a submitted blueprint cannot be used: %s", problem)
            self._bus.refuse(topic, group=GROUP, entry=self._entry, reason=problem)
        else:
            self._bus.acknowledge(topic, group=GROUP, entries=[self._entry])
        self._entry = None
        self.num_done += 1

    def _characterise(self, entry: Entry) -> str:
        """Why the submission is of no use, or nothing."""
        submitted = entry.message.payload
        assert isinstance(submitted, BlueprintSubmitted)

        def announce(kernel: KernelRecord) -> None:
            ready = KernelReady(**dataclasses.asdict(kernel))
            submitted_as = entry.message
            named = f"{submitted_as.event_id}:{kernel.in_shape}:{kernel.out_shape}"  # the same when it is done again
            event_id = uuid.uuid5(uuid.NAMESPACE_URL, named).hex
            topic, trace = TopicName.KERNEL_READY, submitted_as.trace_id
            self._bus.publish([message(topic, ready, sender=self._name, trace=trace, event_id=event_id)])

        with contextlib.closing(Store(self._database, outputs_dir=self._outputs_dir, create=True)) as store:
            try:
                wanted = jobs(_blueprint(submitted, store), self._sites, **self._settings)
            except ConfigError as error:
                return str(error)
            for kernel in characterise(wanted, forge=self._forge, store=store, announce=announce):
                logger.info("%s at %s: %s %s", kernel.blueprint_id, kernel.in_shape, kernel.status, kernel.reason)
        return ""


def _blueprint(submitted: BlueprintSubmitted, store: Store) -> Blueprint:
    if submitted.definition is not None:
        return store.add(submitted.definition, where=submitted.blueprint_id)
    return find_blueprint(submitted.blueprint_id, store)
