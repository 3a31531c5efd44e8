"""For `esper doctor`: planned runs, the command in a process, stub programs, a server that never replies."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from esper.configs.compose import compose
from esper.configs.identity import outputs_folder
from esper.configs.load import from_hydra
from esper.doctor.finding import PlannedRun
from tests.oona.server import PASSWORD

ROOT = Path(__file__).resolve().parents[2]
CANARY = PASSWORD  # of the Redis server; must never be printed
GPU = {"torch": "2.14.1", "cuda": "13.0", "num_threads": 1}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and an environment without the user's settings."""
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
    """The command, in a subprocess."""
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
    """Write a shell script as a program."""
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
    """A PYTHONPATH on which torch cannot be imported, which also makes the doctor quick."""
    folder = tmp_path / "broken" / "torch"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    return f"{folder.parent}:{ROOT}"


@pytest.fixture
def black_hole() -> Iterator[int]:
    """Port of a server that accepts connections and never replies."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
