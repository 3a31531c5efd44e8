"""Findings of `esper doctor` about real servers and files that respond, hang, refuse or are damaged."""

from __future__ import annotations

import re
import sqlite3
import time
from pathlib import Path

import pytest

from esper.configs import DatabaseConfig
from esper.doctor import servers
from esper.doctor.finding import FAILED, NOT_USED, OK, WARNING, Finding
from esper.tracking.mlflow_store import connect
from esper.urza.store import Store
from tests.doctor.conftest import CANARY, planned_run, program
from tests.oona.server import RedisServer

pytestmark = pytest.mark.usefixtures("elsewhere")
OVER = ("bus=redis", "redis.timeout_s=60")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever replies may take longer, on a busy machine."""
    monkeypatch.setattr(servers, "_TIMEOUT_S", 60.0)


def test_redis_is_not_used_with_bus_memory():
    assert servers.redis(planned_run("redis.url=redis://10.255.255.1:6379")).status == NOT_USED


@pytest.mark.usefixtures("patient")
def test_a_redis_that_responds_is_ok(redis_server: RedisServer):
    server = redis_server.start("--appendonly", "yes")
    found = servers.redis(planned_run(*OVER, f"redis.url={server.url}"))
    assert found.status == OK
    assert re.search(r": (Redis|Valkey) \d", found.found)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("password", ["", "wrong"])
def test_a_redis_that_refuses_the_password_is_a_failure(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, password: str
):
    monkeypatch.setenv("ESPER_REDIS_PASSWORD", password)
    found = servers.redis(planned_run(*OVER, f"redis.url={redis_server.start().url}"))
    assert found.status == FAILED
    assert "ESPER_REDIS_PASSWORD" in found.remedy


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--appendonly", "yes", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"), "may evict messages"),
        (("--save", "", "--appendonly", "no"), "without persistence"),
    ],
)
def test_a_redis_that_may_lose_messages_is_a_warning(redis_server: RedisServer, options: tuple[str, ...], word: str):
    found = servers.redis(planned_run(*OVER, f"redis.url={redis_server.start(*options).url}"))
    assert found.status == WARNING
    assert word in found.found


def test_a_redis_without_xautoclaim_is_a_failure():
    assert servers._redis_settings("redis://h", {"redis_version": "6.0.16"}, None).status == FAILED
    assert servers._redis_settings("redis://h", {"redis_version": "6.2.0", "aof_enabled": 1}, None).status == OK


def test_an_mlflow_server_that_is_down_or_hangs_is_a_failure(black_hole: int):
    gone = servers.mlflow(planned_run("tracking.uri=http://127.0.0.1:1"))
    assert gone.status == FAILED
    assert "refused" in gone.found
    silent = servers.mlflow(planned_run(f"tracking.uri=http://127.0.0.1:{black_hole}"))
    assert silent.found.endswith("no response within 2 s")


def test_a_folder_as_mlflow_store_is_a_failure():
    assert servers.mlflow(planned_run("tracking.uri=mlruns")).status == FAILED


def test_an_mlflow_database_is_usable_or_of_another_version_or_damaged(tmp_path: Path):
    file = tmp_path / "our 100% mlflow.db"
    uri = f"sqlite:///{file}"
    connect(uri)
    assert servers.mlflow(planned_run(f"tracking.uri={uri}")).found.endswith("usable")
    head = sqlite3.connect(file).execute("SELECT version_num FROM alembic_version").fetchone()[0]
    for schema, word in ((servers._mlflow_schemas()[head], "older"), ("f00f00f00f00", "another")):
        with sqlite3.connect(file) as database:
            database.execute("UPDATE alembic_version SET version_num = ?", (schema,))
        found = servers.mlflow(planned_run(f"tracking.uri={uri}"))
        assert found.status == FAILED
        assert word in found.found
    file.write_bytes(b"not SQLite at all" * 100)
    assert "not a database" in servers.mlflow(planned_run(f"tracking.uri={uri}")).found


def test_a_library_is_usable_or_of_another_version_or_damaged(tmp_path: Path):
    file = tmp_path / "outputs" / "urza.db"
    config = DatabaseConfig()

    def look(*, is_needed: bool = False) -> Finding:
        return servers.check_library(config, outputs_dir=file.parent, is_needed=is_needed)

    assert look().status == NOT_USED
    assert look(is_needed=True).status == FAILED
    assert not file.parent.exists()
    Store(config, outputs_dir=file.parent, create=True).close()
    assert look().status == OK
    with sqlite3.connect(file) as database:
        database.execute("UPDATE urza_schema SET version = 99")
    newer = look()
    assert newer.status == FAILED
    assert "99" in newer.found
    file.write_bytes(b"not SQLite at all" * 100)
    damaged = look()
    assert damaged.status == FAILED
    assert "not a database" in damaged.found


def test_a_library_whose_server_hangs_is_a_failure(black_hole: int, tmp_path: Path):
    began = time.monotonic()
    config = DatabaseConfig(url=f"postgresql://lab@127.0.0.1:{black_hole}/esper")
    assert servers.check_library(config, outputs_dir=tmp_path, is_needed=True).status == FAILED
    assert time.monotonic() - began < 60  # the server never replies


def test_wandb_needs_a_key_or_works_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    here = planned_run("tracking=wandb")
    assert servers.wandb(here).status == FAILED
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {CANARY}\n")
    assert servers.wandb(here).status == OK
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.lab.example")
    assert servers.wandb(here).status == FAILED
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "offline" in servers.wandb(here).found
    assert servers.wandb(planned_run()).status == NOT_USED


@pytest.mark.usefixtures("patient")
def test_slurm_is_ok_without_accounting(programs: Path):
    program(programs, "sbatch", "exit 0")
    program(programs, "sinfo", "echo gpu; echo debug")
    program(programs, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    found = servers.slurm(planned_run())
    assert found.status == OK
    assert "partitions gpu, debug" in found.found
    assert "no accounting" in found.found


def test_a_hung_slurm_controller_is_a_failure_only_for_the_slurm_launcher(programs: Path):
    program(programs, "sbatch", "exit 0")
    program(programs, "sinfo", "exec sleep 200")
    began = time.monotonic()
    assert servers.slurm(planned_run()).status == WARNING
    assert servers.slurm(planned_run("hydra/launcher=slurm")).status == FAILED
    assert time.monotonic() - began < 150


def test_missing_slurm_is_a_failure_only_for_the_slurm_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert servers.slurm(planned_run()).status == NOT_USED
    assert servers.slurm(planned_run("hydra/launcher=slurm")).status == FAILED
