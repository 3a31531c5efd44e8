"""`esper services up`: runs Tamiyo and Tezzeret until a signal stops them."""

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
from esper.configs.compose import compose
from esper.configs.load import from_hydra
from esper.errors import BusError, ConfigError
from esper.oona.embedded import embedded_server
from esper.oona.redis import RedisBus, address
from esper.oona.service import HEARTBEAT_S, heartbeat
from esper.services import SERVICES
from esper.services.daemon import STOP_S, pid_file, say_stopping
from esper.tamiyo.service import TamiyoService
from esper.tezzeret.characterise import Forge
from esper.tezzeret.process import WorkerStopped
from esper.tezzeret.service import TezzeretService
from esper.urza.command import OUTPUTS

__all__ = ["up"]

logger = logging.getLogger(__name__)

_TAMIYO_CLAIM_S = 1.0
"""Well below the deadline of a question: another Tamiyo answers those of one that was killed."""
_FORGE_CLAIM_S = 3600.0
"""A submission may take long; after this time another forge takes it over."""


@dataclass(kw_only=True)
class _Running:
    service: TamiyoService | TezzeretService
    thread: threading.Thread
    bus: RedisBus


def up(overrides: Sequence[str], *, only: Sequence[str], name: str | None, policy: Path | None) -> int:
    """Run services in this process until SIGTERM or Ctrl-C; returns the exit code.

    Raises:
        ConfigError: invalid settings, or services of this name already run.
        BusError: the bus cannot be reached.
    """
    config = from_hydra(compose(overrides))
    if policy is not None and not policy.is_file():
        raise ConfigError(f"--policy {policy}: no such file; create one with: esper simic RUN_DIR... --out FILE")
    stop = threading.Event()
    logging.basicConfig(format="%(asctime)s  %(levelname)-7s  %(message)s", level=logging.INFO, stream=sys.stdout)
    with contextlib.ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: stop.set()))
        name = stack.enter_context(pid_file(name))
        if config.redis.url == "embedded":
            stack.enter_context(embedded_server())
        bus = stack.enter_context(contextlib.closing(RedisBus(config.redis)))
        version = bus.ping()
        running = {
            service: _start(service, config, name=name, policy=policy, stop=stop) for service in only or SERVICES
        }
        for one in running.values():
            stack.callback(one.bus.close)
        since_unix_s = time.time()
        # Before they are said to run: `esper services check` looks for these.
        _send_heartbeats(running, bus, name=name, since_unix_s=since_unix_s)
        logger.info("%s as %s on Redis %s at %s", " and ".join(running), name, version, address(config.redis))
        timeout_s = min(1.0, config.redis.timeout_s)
        bus = stack.enter_context(contextlib.closing(RedisBus(dataclasses.replace(config.redis, timeout_s=timeout_s))))
        is_healthy = _watch(running, bus, name=name, since_unix_s=since_unix_s, stop=stop)
        deadline = time.monotonic() + STOP_S
        say_stopping(name)
        stop.set()
        for one in running.values():
            one.thread.join(max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(BusError):
            for which in running:
                bus.silence(f"{which}:{name}")
        logger.info("stopped: %s", ", ".join(f"{which} {one.service.num_done} done" for which, one in running.items()))
    return 0 if is_healthy else 1


def _start(which: str, config: TolariaConfig, *, name: str, policy: Path | None, stop: threading.Event) -> _Running:
    service: TamiyoService | TezzeretService
    if which == "tamiyo":
        bus = RedisBus(config.redis, claim_after_s=_TAMIYO_CLAIM_S)
        service = TamiyoService(bus, name=name, policy_path=str(policy) if policy else None)
    else:
        bus = RedisBus(config.redis, claim_after_s=_FORGE_CLAIM_S)
        forge = Forge(device=config.device, storage=config.storage, stop=stop)
        with contextlib.suppress(WorkerStopped):
            forge.start()  # now, to report a missing device early
        service = TezzeretService(bus, name=name, forge=forge, database=config.database, outputs_dir=OUTPUTS)
    # Daemon threads: a hung service must not keep the process alive after STOP_S.
    thread = threading.Thread(target=service.run, args=(stop,), name=f"esper-{which}", daemon=True)
    thread.start()
    return _Running(service=service, thread=thread, bus=bus)


def _send_heartbeats(running: dict[str, _Running], bus: RedisBus, *, name: str, since_unix_s: float) -> None:
    for which, one in running.items():
        heartbeat(bus, service=which, name=name, since_unix_s=since_unix_s, num_done=one.service.num_done)


def _watch(
    running: dict[str, _Running], bus: RedisBus, *, name: str, since_unix_s: float, stop: threading.Event
) -> bool:
    """Send heartbeats until `stop` is set or a service dies; returns whether all were alive until the stop."""
    while not stop.is_set():
        if not all(one.thread.is_alive() for one in running.values()):
            logger.error("a service ended unexpectedly; see above")
            return False
        with contextlib.suppress(BusError):  # the services log it
            _send_heartbeats(running, bus, name=name, since_unix_s=since_unix_s)
        stop.wait(HEARTBEAT_S)
    return True
