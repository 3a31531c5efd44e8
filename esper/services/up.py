"""`esper services up`: Tamiyo and the forge, for many runs."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from esper.configs import TolariaConfig
from esper.errors import BusError, ConfigError
from esper.oona.embedded import embedded_server
from esper.oona.health import BEAT_S, heartbeat
from esper.oona.redis import RedisBus, address
from esper.services.control import GRACE_S, SERVICES, configured, registered
from esper.tamiyo.service import TamiyoService
from esper.tezzeret.characterise import Forge
from esper.tezzeret.process import Stopped
from esper.tezzeret.service import TezzeretService
from esper.urza.command import OUTPUTS

__all__ = ["up"]

logger = logging.getLogger(__name__)

_TAMIYO_CLAIM_S = 1.0
"""Another Tamiyo takes the questions of one that was killed before their deadline is over."""
_FORGE_CLAIM_S = 3600.0
"""A submission is worked on for long; another forge takes it over after that."""


@dataclass(kw_only=True)
class _Running:
    service: TamiyoService | TezzeretService
    thread: threading.Thread
    bus: RedisBus


def up(overrides: Sequence[str], *, only: Sequence[str], name: str | None, policy: Path | None) -> int:
    """Run services in this process until SIGTERM or Ctrl-C; returns the exit code.

    Raises:
        ConfigError: settings that cannot be used, or services of this name that run already.
        BusError: the bus does not answer.
    """
    config = configured(overrides)
    if policy is not None and not policy.is_file():
        raise ConfigError(f"--policy {policy}: no such file; make one with: esper simic RUN_FOLDER... --out FILE")
    stop = threading.Event()
    logging.basicConfig(format="%(asctime)s  %(levelname)-7s  %(message)s", level=logging.INFO, stream=sys.stdout)
    with contextlib.ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: stop.set()))
        name = stack.enter_context(registered(name))
        if config.redis.url == "embedded":
            stack.enter_context(embedded_server())
        patience_s = min(1.0, config.redis.timeout_s)
        bus = stack.enter_context(contextlib.closing(RedisBus(dataclasses.replace(config.redis, timeout_s=patience_s))))
        version = bus.ping()
        running = {kind: _start(kind, config, name=name, policy=policy, stop=stop) for kind in only or SERVICES}
        for one in running.values():
            stack.callback(one.bus.close)
        logger.info("%s as %s on Redis %s at %s", " and ".join(running), name, version, address(config.redis))
        is_sound = _wait(running, bus, name=name, stop=stop)
        deadline = time.monotonic() + GRACE_S
        stop.set()
        for one in running.values():
            one.thread.join(max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(BusError):
            for kind in running:
                bus.silence(f"{kind}:{name}")
        logger.info("stopped: %s", ", ".join(f"{kind} {one.service.num_done} done" for kind, one in running.items()))
    return 0 if is_sound else 1


def _start(kind: str, config: TolariaConfig, *, name: str, policy: Path | None, stop: threading.Event) -> _Running:
    service: TamiyoService | TezzeretService
    if kind == "tamiyo":
        bus = RedisBus(config.redis, claim_after_s=_TAMIYO_CLAIM_S)
        service = TamiyoService(bus, name=name, policy_path=str(policy) if policy else None)
    else:
        bus = RedisBus(config.redis, claim_after_s=_FORGE_CLAIM_S)
        forge = Forge(device=config.device, storage=config.storage, stop=stop)
        with contextlib.suppress(Stopped):  # told to stop before it began
            forge.start()  # a device that is not there is told now
        service = TezzeretService(bus, name=name, forge=forge, database=config.database, outputs_dir=OUTPUTS)
    # Daemons: what hangs must not keep the process beyond its time to stop.
    thread = threading.Thread(target=service.run, args=(stop,), name=f"esper-{kind}", daemon=True)
    thread.start()
    return _Running(service=service, thread=thread, bus=bus)


def _wait(running: dict[str, _Running], bus: RedisBus, *, name: str, stop: threading.Event) -> bool:
    """Say that the services are alive until it is time to stop; returns whether all of them were until then."""
    since_unix_s = time.time()
    while not stop.is_set():
        if not all(one.thread.is_alive() for one in running.values()):
            logger.error("a service ended by itself; see above")
            return False
        for kind, one in running.items():
            with contextlib.suppress(BusError):  # the services themselves tell of it
                heartbeat(bus, service=kind, name=name, since_unix_s=since_unix_s, num_done=one.service.num_done)
        stop.wait(BEAT_S)
    return True
