"""What the services on a bus share: a serving loop that retries, heartbeats, and the health of all services."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from esper import __version__
from esper.configs.redis import RedisConfig
from esper.errors import BusError, ConfigError, EsperError
from esper.oona.redis import RedisBus, address

__all__ = ["HEARTBEAT_S", "Health", "heartbeat", "serve", "service_health"]

logger = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
"""Time between heartbeats of a service; after three missed ones it counts as absent."""
_MAX_RETRY_S = 5.0


def serve(once: Callable[[], object], *, stop: threading.Event) -> None:
    """Call `once` until `stop` is set; on an `EsperError`, retry with exponential backoff."""
    retry_s = 0.0
    while not stop.is_set():
        try:
            once()
            retry_s = 0.0
        except EsperError as error:
            retry_s = min(_MAX_RETRY_S, 2 * retry_s or 0.1)
            logger.warning("retrying in %g s: %s", retry_s, error)
            stop.wait(retry_s)


def heartbeat(bus: RedisBus, *, service: str, name: str, since_unix_s: float, num_done: int) -> None:
    """Publish that a service is alive.

    Raises:
        BusError: the bus cannot be reached.
    """
    content = {"version": __version__, "since_unix_s": since_unix_s, "num_done": num_done}
    bus.beat(f"{service}:{name}", json.dumps(content), lasts_s=3 * HEARTBEAT_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """State of a service.

    Attributes:
        service: redis, tamiyo, tezzeret or library.
        status: healthy, absent (not running) or failed.
        name: name of the service's process, or address of the server.
        version: of the server, or of Esper.
        latency_s: response time; None: not measured.
        detail: further information; the reason of a failure.
    """

    service: str
    status: str
    name: str = ""
    version: str = ""
    latency_s: float | None = None
    detail: str = ""


def service_health(config: RedisConfig, *, timeout_s: float = math.inf) -> list[Health]:
    """The health of the bus, then of every service with a heartbeat; a failure to connect is returned, not raised.

    Args:
        config: address of the server.
        timeout_s: limit of each call to the server, if below that of the settings.
    """
    url = ""
    try:
        url = address(config)
        bus = RedisBus(dataclasses.replace(config, timeout_s=min(timeout_s, config.timeout_s)))
        try:
            started = time.perf_counter()
            version = bus.ping()
            latency_s = time.perf_counter() - started
            heartbeats = bus.heartbeats()
        finally:
            bus.close()
    except (BusError, ConfigError) as error:
        return [Health(service="redis", status="failed", name=url, detail=str(error).removeprefix(f"{url}: "))]
    redis = Health(service="redis", status="healthy", name=url, version=version, latency_s=latency_s)
    return [redis, *(_of_heartbeat(key, content) for key, content in heartbeats.items())]


def _of_heartbeat(key: str, content: str) -> Health:
    service, _, name = key.partition(":")
    try:
        fields = json.loads(content)
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(fields["since_unix_s"])))
        detail, version = f"since {since}, {int(fields['num_done'])} done", str(fields.get("version", ""))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, OSError):
        return Health(service=service, status="failed", name=name, detail="its heartbeat cannot be read")
    return Health(service=service, status="healthy", name=name, version=version, detail=detail)
