"""How the services stand that share a bus."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from typing import Any

from esper import __version__
from esper.configs.redis import RedisConfig
from esper.errors import BusError, ConfigError
from esper.oona.redis import RedisBus, address

__all__ = ["BEAT_S", "Health", "heartbeat", "listen"]

BEAT_S = 2.0
"""How often a service says that it is alive; after three times as long without it is taken for gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a service stands.

    Attributes:
        service: redis, tamiyo, tezzeret or library.
        status: healthy, absent (nobody runs it) or failed.
        name: of the process among those that run the service.
        version: of the server, or of Esper.
        latency_s: how long an answer took; None: it was not asked.
        detail: what else there is to say; of a failure, why.
    """

    service: str
    status: str
    name: str = ""
    version: str = ""
    latency_s: float | None = None
    detail: str = ""


def heartbeat(bus: RedisBus, *, service: str, name: str, since_unix_s: float, num_done: int) -> None:
    """Say that a service is alive.

    Raises:
        BusError: the bus is away.
    """
    content = {"version": __version__, "since_unix_s": since_unix_s, "num_done": num_done}
    bus.beat(f"{service}:{name}", json.dumps(content), lasts_s=3 * BEAT_S)


def listen(config: RedisConfig, *, timeout_s: float = 1.0) -> list[Health]:
    """The bus, and the services that are alive on it; a server that does not answer is told, not raised.

    Args:
        config: where it is.
        timeout_s: longest wait for each answer.
    """
    place = ""
    try:
        place = address(config)
        bus = RedisBus(dataclasses.replace(config, timeout_s=min(timeout_s, config.timeout_s)))
        try:
            started = time.perf_counter()
            version = bus.ping()
            latency_s = time.perf_counter() - started
            beats = bus.heartbeats()
        finally:
            bus.close()
    except (BusError, ConfigError) as error:
        return [Health(service="redis", status="failed", name=place, detail=str(error).removeprefix(f"{place}: "))]
    redis = Health(service="redis", status="healthy", name=place, version=version, latency_s=latency_s)
    return [redis, *(_alive(key, _fields(content)) for key, content in beats.items())]


def _alive(key: str, fields: dict[str, Any]) -> Health:
    service, _, name = key.partition(":")
    try:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(fields["since_unix_s"])))
        detail = f"since {since}, {int(fields['num_done'])} done"
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return Health(service=service, status="failed", name=name, detail="says something that is no sign of life")
    return Health(service=service, status="healthy", name=name, version=str(fields.get("version", "")), detail=detail)


def _fields(content: str) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}
