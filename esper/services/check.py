"""`esper services check`: does each service answer?"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import time
from collections.abc import Sequence

from esper.configs import MorphogeneticConfig, RedisConfig, TolariaConfig
from esper.errors import EsperError
from esper.oona.health import Health, listen
from esper.oona.redis import RedisBus
from esper.services.control import SERVICES, configured, show
from esper.tamiyo.remote import SharedTamiyo
from esper.urza.command import OUTPUTS
from esper.urza.store import Store

__all__ = ["check"]

_DEADLINE_S = 3.0


def check(overrides: Sequence[str], *, only: Sequence[str], as_json: bool) -> int:
    """Ask every service, print how it answers; returns the exit code, 0 if none is absent or fails.

    Args:
        overrides: as of `esper-train`.
        only: services that have to be there; all if empty.
        as_json: for programs.
    """
    config = configured(overrides)
    found = listen(config.redis)
    if found[0].status == "healthy":
        found += [_absent(kind) for kind in only or SERVICES if all(one.service != kind for one in found)]
        found = [_asked(one, config.redis) if one.service == "tamiyo" else one for one in found]
    is_well = all(one.status == "healthy" for one in found)
    library = _library(config)
    show([*found, library], as_json=as_json)
    return 0 if is_well and library.status != "failed" else 1


def _absent(service: str) -> Health:
    return Health(service=service, status="absent", detail=f"start it: esper services up --only {service}")


def _asked(tamiyo: Health, config: RedisConfig) -> Health:
    """Have a question answered, one that asks for nothing; any Tamiyo on the bus may answer it."""
    if tamiyo.status != "healthy":
        return tamiyo
    policy = MorphogeneticConfig(policy="never", tamiyo_deadline_s=_DEADLINE_S)
    client = SharedTamiyo(RedisBus(config), run_id=f"check/{socket.gethostname()}", config=policy, rng_seed=0)
    started = time.perf_counter()
    try:
        client.decide([])
    except EsperError as error:
        return dataclasses.replace(tamiyo, status="failed", detail=str(error))
    finally:
        client.close()
    return dataclasses.replace(tamiyo, latency_s=time.perf_counter() - started)


def _library(config: TolariaConfig) -> Health:
    """The blueprint library, of which the first that writes into it makes one."""
    if config.database.url is None and not (OUTPUTS / "urza.db").exists():
        return Health(service="library", status="absent", detail="none in this folder yet; esper urza import makes one")
    started = time.perf_counter()
    try:
        with contextlib.closing(Store(config.database, outputs_dir=OUTPUTS)) as store:
            detail = f"{len(store.blueprints())} blueprints, {len(store.kernels())} kernels"
            where = store.where
    except EsperError as error:
        return Health(service="library", status="failed", detail=str(error))
    latency_s = time.perf_counter() - started
    return Health(service="library", status="healthy", name=where, latency_s=latency_s, detail=detail)
