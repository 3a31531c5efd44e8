"""The forge as a service: blueprints are submitted, and kernels announced, on topics of a bus."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from esper.configs import DatabaseConfig
from esper.errors import ConfigError, EsperError
from esper.tezzeret.characterise import SITES, Announce, Forge, characterise, jobs
from esper.tezzeret.process import Stopped
from esper.urza import Blueprint, Shape
from esper.urza.command import find
from esper.urza.store import Store

__all__ = ["BLUEPRINT_SUBMITTED", "Submission", "serve"]

logger = logging.getLogger(__name__)

BLUEPRINT_SUBMITTED = "compilation.blueprint.submitted"
"""Topic on which blueprints are submitted."""
_WAIT_S = 0.5
_RETRY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A blueprint that somebody wants characterised.

    Attributes:
        blueprint_id: name or id, built in or of the library.
        definition: of one that the library need not hold yet, in JSON.
        done: tells the bus that it is dealt with; what is not comes again.
    """

    blueprint_id: str
    definition: str | None = None
    done: Callable[[], object]


def serve(
    take: Callable[[float], Submission | None],
    *,
    announce: Announce,
    forge: Forge,
    database: DatabaseConfig,
    outputs_dir: Path,
    stop: threading.Event,
    sites: Sequence[tuple[Shape, Shape]] = SITES,
    batch_size: int = 128,
    compile: bool = True,
) -> None:
    """Characterise what is submitted until a stop is asked for; a job under way is then given up, and comes again.

    One that cannot be used is logged and dealt with. Where the library cannot be reached, or the worker does not
    start, it is tried again.

    Args:
        take: the next submission within some seconds, or None.
        announce: publishes a kernel, once it is in the library.
        forge: who does it; made with the same `stop`.
        database: which library.
        outputs_dir: folder in which the default one lies.
        stop: set to end.
        sites: shapes at which blueprints are characterised where they fit.
        batch_size: examples of a pass.
        compile: whether to measure them compiled as well.
    """
    submission: Submission | None = None
    with contextlib.closing(forge):
        while not stop.is_set():
            submission = submission or take(_WAIT_S)
            if submission is None:
                continue
            try:
                with contextlib.closing(Store(database, outputs_dir=outputs_dir, create=True)) as store:
                    wanted = jobs(_blueprint(submission, store), sites, batch_size=batch_size, compile=compile)
                    for kernel in characterise(wanted, forge=forge, store=store, announce=announce):
                        logger.info(
                            "%s at %s: %s %s", kernel.blueprint_id, kernel.in_shape, kernel.status, kernel.reason
                        )
            except Stopped:
                return
            except ConfigError as error:
                logger.warning("a submitted blueprint cannot be used: %s", error)
            except EsperError as error:
                logger.error("tried again in %g s: %s", _RETRY_S, error)
                stop.wait(_RETRY_S)
                continue
            submission.done()
            submission = None


def _blueprint(submission: Submission, store: Store) -> Blueprint:
    if submission.definition is not None:
        return store.add(submission.definition, where=submission.blueprint_id)
    return find(submission.blueprint_id, store)
