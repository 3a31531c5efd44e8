from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from esper.configs import DatabaseConfig
from esper.tezzeret.characterise import Forge, Limits
from esper.tezzeret.service import Submission, serve
from esper.urza.records import KernelRecord
from esper.urza.store import Store
from tests.urza.definitions import text

BAD = (str(Path(__file__).with_name("bad_worker.py")),)
SHAPE = (8, 4, 4)


class Running:
    """The service in a thread, with queues for a bus."""

    def __init__(self, outputs_dir: Path) -> None:
        self.outputs_dir = outputs_dir
        self.announced: queue.Queue[dict[str, Any]] = queue.Queue()
        self.done: queue.Queue[str] = queue.Queue()
        self.stop = threading.Event()
        self._submitted: queue.Queue[Submission] = queue.Queue()
        forge = Forge(device="cpu", limits=Limits(timeout_s=30), stop=self.stop, worker=BAD)
        self.thread = threading.Thread(
            target=serve,
            args=(self._take,),
            kwargs={
                "announce": lambda _, payload: self.announced.put(payload),
                "forge": forge,
                "database": DatabaseConfig(),
                "outputs_dir": outputs_dir,
                "stop": self.stop,
                "sites": [(SHAPE, SHAPE)],
                "batch_size": 4,
                "compile": False,
            },
        )
        self.thread.start()

    def submit(self, name: str, definition: str | None = None) -> None:
        done: Callable[[], object] = lambda: self.done.put(name)  # noqa: E731
        self._submitted.put(Submission(blueprint_id=name, definition=definition, done=done))

    def kernels(self) -> list[KernelRecord]:
        with contextlib.closing(Store(DatabaseConfig(), outputs_dir=self.outputs_dir)) as store:
            return store.kernels()

    def _take(self, timeout_s: float) -> Submission | None:
        with contextlib.suppress(queue.Empty):
            return self._submitted.get(timeout=timeout_s)
        return None


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    running.stop.set()
    running.thread.join(10)
    assert not running.thread.is_alive()


def test_what_is_submitted_is_characterised_announced_and_then_done(service: Running):
    service.submit("wide_depthwise", text())
    service.submit("conv1x1")
    names = [service.announced.get(timeout=60)["blueprint_id"] for _ in range(2)]
    assert [service.done.get(timeout=60) for _ in range(2)] == ["wide_depthwise", "conv1x1"]
    assert [kernel.blueprint_id for kernel in service.kernels()] == names
    assert names[0].startswith("wide_depthwise@")


def test_what_cannot_be_used_or_crashes_does_not_end_the_service(service: Running):
    wanted = {"unknown": None, "evil": '{"schema": 1, "code": "import os"}', "crash": text("crash"), "conv1x1": None}
    for name, definition in wanted.items():
        service.submit(name, definition)
    assert [service.done.get(timeout=60) for _ in wanted] == list(wanted)
    assert [kernel.status for kernel in service.kernels()] == ["crashed", "ready"]


def test_a_stop_ends_it_soon_and_what_is_under_way_is_not_done(service: Running):
    service.submit("conv1x1")
    service.done.get(timeout=60)
    service.submit("hang", text("hang"))
    time.sleep(0.5)
    service.stop.set()
    started = time.monotonic()
    service.thread.join(10)
    assert time.monotonic() - started < 5
    assert service.done.empty()
    assert len(service.kernels()) == 1


def test_a_library_that_cannot_be_reached_is_tried_again(service: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("esper.tezzeret.service._RETRY_S", 0.1)
    (service.outputs_dir / "urza.db").mkdir()
    service.submit("conv1x1")
    time.sleep(0.5)
    assert service.done.empty()
    (service.outputs_dir / "urza.db").rmdir()
    assert service.done.get(timeout=60) == "conv1x1"
