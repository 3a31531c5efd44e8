"""A shared Tamiyo that runs: in a thread of the test, or in a process that can be killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import warnings
from collections.abc import Iterator
from multiprocessing.process import BaseProcess

from esper.configs import RedisConfig
from esper.oona.redis import RedisBus
from esper.tamiyo.service import TamiyoService

__all__ = ["process", "served"]


@contextlib.contextmanager
def served(bus: RedisBus, *, policy_path: str | None = None) -> Iterator[TamiyoService]:
    """Serve from a thread."""
    stop, service = threading.Event(), TamiyoService(bus, name="tamiyo-1", policy_path=policy_path)
    thread = threading.Thread(target=service.run, args=(stop,))
    thread.start()
    try:
        yield service
        assert thread.is_alive(), "the service died"
    finally:
        stop.set()
        thread.join(20)


def _serve(config: RedisConfig) -> None:
    TamiyoService(RedisBus(config), name="tamiyo-1").run(threading.Event())


@contextlib.contextmanager
def process(config: RedisConfig) -> Iterator[BaseProcess]:
    """Serve from a process of its own; it is killed at the end, if it was not before."""
    # A fork: importing torch anew takes longer than the whole test.
    serving = multiprocessing.get_context("fork").Process(target=_serve, args=(config,), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads do not come along, and are not needed
        serving.start()
    try:
        yield serving
    finally:
        serving.kill()
        serving.join()
