from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.configs import DatabaseConfig
from esper.contracts.messages import BlueprintSubmitted, KernelReady, TopicName
from esper.oona.codec import message
from esper.oona.redis import RedisBus
from esper.tezzeret.characterise import Forge, Limits
from esper.tezzeret.service import TezzeretService
from esper.urza.records import KernelRecord
from esper.urza.store import Store
from tests.oona.server import RedisServer
from tests.urza.definitions import text

BAD = (str(Path(__file__).with_name("bad_worker.py")),)
SHAPE = (8, 4, 4)


class Running:
    """The service in a thread."""

    def __init__(self, bus: RedisBus, outputs_dir: Path) -> None:
        self.outputs_dir = outputs_dir
        self.bus = bus
        self.stop = threading.Event()
        self.service = TezzeretService(
            self.bus,
            name="forge",
            forge=Forge(device="cpu", limits=Limits(timeout_s=30), stop=self.stop, worker=BAD),
            database=DatabaseConfig(),
            outputs_dir=outputs_dir,
            sites=[(SHAPE, SHAPE)],
            batch_size=4,
            compile=False,
        )
        self.thread = threading.Thread(target=self.service.run, args=(self.stop,))
        self.thread.start()

    def submit(self, name: str, definition: str | None = None) -> None:
        payload = BlueprintSubmitted(blueprint_id=name, submitted_by="test", definition=definition)
        self.bus.publish([message(TopicName.BLUEPRINT_SUBMITTED, payload, sender="test", trace=name)])

    def wait_until_done(self, num: int) -> None:
        deadline = time.monotonic() + 60
        while self.service.num_done < num:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def announced(self) -> list[KernelReady]:
        entries = self.bus.take(TopicName.KERNEL_READY, group="test", consumer="test")
        return [entry.message.payload for entry in entries]

    def kernels(self) -> list[KernelRecord]:
        with contextlib.closing(Store(DatabaseConfig(), outputs_dir=self.outputs_dir)) as store:
            return store.kernels()


@pytest.fixture
def service(bus: RedisBus, tmp_path: Path) -> Iterator[Running]:
    running = Running(bus, tmp_path)
    yield running
    running.stop.set()
    running.thread.join(20)
    assert not running.thread.is_alive()


def test_what_is_submitted_is_characterised_announced_and_then_done(service: Running):
    service.submit("wide_depthwise", text())
    service.submit("conv1x1")
    service.wait_until_done(2)
    kernels = service.kernels()
    assert [dataclasses.asdict(kernel) for kernel in kernels] == [
        {name: value for name, value in dataclasses.asdict(ready).items() if name != "kind"}
        for ready in service.announced()
    ]
    assert kernels[0].blueprint_id.startswith("wide_depthwise@")


def test_what_cannot_be_used_or_crashes_does_not_end_the_service(service: Running, redis_server: RedisServer):
    wanted = {"unknown": None, "evil": '{"schema": 1, "code": "import os"}', "crash": text("crash"), "conv1x1": None}
    for name, definition in wanted.items():
        service.submit(name, definition)
    service.wait_until_done(4)
    assert [kernel.status for kernel in service.kernels()] == ["crashed", "ready"]
    reasons = [letter[b"reason"] for letter in redis_server.dead_letters()]
    assert len(reasons) == 2
    assert b"unknown" in reasons[0]


@pytest.mark.long
def test_a_stop_ends_it_soon_and_what_is_under_way_is_not_done(service: Running):
    service.submit("conv1x1")
    service.wait_until_done(1)
    service.submit("hang", text("hang"))
    time.sleep(0.5)
    service.stop.set()
    service.thread.join(20)
    assert not service.thread.is_alive()  # the job may take 30 s
    assert service.service.num_done == 1
    assert len(service.kernels()) == 1


@pytest.mark.long
def test_a_library_that_cannot_be_reached_is_tried_again(service: Running):
    (service.outputs_dir / "urza.db").mkdir()
    service.submit("conv1x1")
    time.sleep(0.5)
    assert service.service.num_done == 0
    (service.outputs_dir / "urza.db").rmdir()
    service.wait_until_done(1)
    assert len(service.announced()) == 1
