"""The loop of a service: what a bus or a library is short of is waited for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from esper.errors import EsperError

__all__ = ["serve"]

logger = logging.getLogger(__name__)

_MAX_RETRY_S = 5.0


def serve(once: Callable[[], object], *, stop: threading.Event) -> None:
    """Call `once` until `stop` is set; while it raises an `EsperError`, ever more rarely."""
    retry_s = 0.0
    while not stop.is_set():
        try:
            once()
            retry_s = 0.0
        except EsperError as error:
            retry_s = min(_MAX_RETRY_S, 2 * retry_s or 0.1)
            logger.warning("tried again in %g s: %s", retry_s, error)
            stop.wait(retry_s)
