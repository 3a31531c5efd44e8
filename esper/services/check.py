"""`esper services check`: whether each service responds."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import time
from collections.abc import Sequence

from esper.configs import MorphogeneticConfig, RedisConfig, TolariaConfig
from esper.configs.compose import compose
from esper.configs.load import from_hydra
from esper.errors import EsperError
from esper.oona.redis import RedisBus
from esper.oona.service import Health, service_health
from esper.services import SERVICES
from esper.services.status import show
from esper.tamiyo.remote import SharedTamiyo
from esper.urza.command import OUTPUTS
from esper.urza.store import Store

__all__ = ["check"]

_DEADLINE_S = 3.0


def check(overrides: Sequence[str], *, only: Sequence[str], as_json: bool) -> int:
    """Test every service and print its health; returns exit code 1 if one is absent or has failed, else 0.

    Args:
        overrides: as for `esper-train`.
        only: required services; empty: all.
        as_json: print JSON instead of a table.
    """
    config = from_hydra(compose(overrides))
    services = service_health(config.redis)
    if services[0].status == "healthy":
        present = {one.service for one in services}
        services += [_absent(name) for name in only or SERVICES if name not in present]
        services = [_consult(one, config.redis) if one.service == "tamiyo" else one for one in services]
    library = _library(config)
    show([*services, library], as_json=as_json)
    return 0 if all(one.status == "healthy" for one in services) and library.status != "failed" else 1


def _absent(service: str) -> Health:
    return Health(service=service, status="absent", detail=f"start it: esper services up --only {service}")


def _consult(tamiyo: Health, config: RedisConfig) -> Health:
    """Time an empty consultation; any Tamiyo on the bus may answer it."""
    if tamiyo.status != "healthy":
        return tamiyo
    policy = MorphogeneticConfig(policy="never", tamiyo_deadline_s=max(_DEADLINE_S, config.timeout_s))
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
    """Health of the blueprint library, which the first import creates."""
    if config.database.url is None and not (OUTPUTS / "urza.db").exists():
        return Health(service="library", status="absent", detail="none in this folder; esper urza import creates one")
    started = time.perf_counter()
    try:
        with contextlib.closing(Store(config.database, outputs_dir=OUTPUTS)) as store:
            detail = f"{len(store.blueprints())} blueprints, {len(store.kernels())} kernels"
            where = store.where
    except EsperError as error:
        return Health(service="library", status="failed", detail=str(error))
    latency_s = time.perf_counter() - started
    return Health(service="library", status="healthy", name=where, latency_s=latency_s, detail=detail)
