"""For `esper doctor`: the run that is looked at, and real servers that answer, hang or refuse."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from esper.configs.compose import compose
from esper.configs.identity import outputs_folder
from esper.configs.load import from_hydra
from esper.doctor.finding import PlannedRun

ROOT = Path(__file__).resolve().parents[2]
CANARY = "canary-3f9a1c"
GPU = {"torch": "2.14.1", "cuda": "13.0", "num_threads": 1}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and an environment without what this machine's users have set."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "WANDB_", "SLURM_", "CUDA_", "OMP_", "PG")) or name == "NETRC":
            monkeypatch.delenv(name)


def planned_run(*overrides: str, probe: dict[str, Any] | None = None) -> PlannedRun:
    cfg: Any = compose(overrides)
    config, run_dir = from_hydra(cfg), Path(cfg.hydra.run.dir)
    return PlannedRun(
        config=config,
        run_dir=run_dir,
        outputs_dir=outputs_folder(run_dir.absolute(), experiment_name=config.experiment_name),
        launcher=cfg.hydra.runtime.choices["hydra/launcher"],
        probe=lambda: GPU if probe is None else probe,
    )


def esper_doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own."""
    script = "import sys; sys.argv[0] = 'esper'; from esper.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", script, "doctor", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in json.loads(done.stdout)}


def program(folder: Path, name: str, script: str) -> None:
    """Put a program first on the path."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def broken_torch(tmp_path: Path) -> str:
    """A PYTHONPATH on which torch cannot be imported; the doctor is also quick then."""
    folder = tmp_path / "broken" / "torch"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    return f"{folder.parent}:{ROOT}"


@pytest.fixture
def black_hole() -> Iterator[int]:
    """Port of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


class Server(NamedTuple):
    url: str
    process: subprocess.Popen[bytes]


@pytest.fixture
def redis_server() -> Iterator[Callable[..., Server]]:
    """Starts a Redis with options, asking for the password that is the canary."""
    path = shutil.which("redis-server")
    if path is None and os.environ.get("ESPER_REQUIRE_REDIS"):
        pytest.fail("Redis is required here: no redis-server (apt-get install redis-server)")
    if path is None:
        pytest.skip("no redis-server (apt-get install redis-server)")
    folder = Path(tempfile.mkdtemp(prefix="esper-redis-"))  # short: a socket
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> Server:
        place = folder / f"s{len(started)}"
        fixed = ["--port", "0", "--unixsocket", str(place), "--dir", str(folder), "--requirepass", CANARY]
        started.append(subprocess.Popen([path, *fixed, *options], stdout=subprocess.DEVNULL))
        end = time.monotonic() + 30
        while True:
            try:
                with redis.Redis(unix_socket_path=str(place), password=CANARY) as client:
                    client.ping()
                return Server(f"unix://{place}", started[-1])
            except redis.ConnectionError:
                assert time.monotonic() < end
                time.sleep(0.05)

    yield start
    for process in started:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
    shutil.rmtree(folder)
