from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from sqlalchemy import make_url
from sqlalchemy import text as sql

from esper.configs import DatabaseConfig
from esper.errors import ConfigError, StoreError
from esper.urza.database import database_url, open_engine
from esper.urza.records import KernelRecord, Outcome
from esper.urza.store import Store
from tests.urza.definitions import text

KERNEL = KernelRecord(
    blueprint_id="conv1x1",
    in_shape=(8, 4, 4),
    out_shape=(16, 2, 2),
    batch_size=32,
    device="cpu",
    torch_version="2.10",
    status="ready",
    num_parameters=160,
    num_macs=2**40,
    memory_bytes=2**40,
    forward_s=1e-4,
)
OUTCOME = Outcome(
    experiment_name="tiny",
    run_name="run",
    graft_id=1,
    blueprint_id="conv1x1",
    site="layer1.0:after",
    in_shape=(8, 4, 4),
    out_shape=(8, 4, 4),
    epoch=3,
    num_examples=64,
    loss_off=1.5,
    gain=0.25,
    lower_bound=0.125,
    confidence=0.95,
    kept=True,
    added_parameters=160,
    added_macs=2**40,
    cost_macs=1000,
    cost_s=0.5,
)


def opened(database: DatabaseConfig, *, create: bool = True) -> contextlib.closing[Store]:
    return contextlib.closing(Store(database, outputs_dir=Path("unused"), create=create))


def test_records_survive_closing_the_store(database: DatabaseConfig):
    with opened(database) as store:
        added = store.add(text())
        store.put_kernel(KERNEL)
        store.put_outcomes([OUTCOME])
    with opened(database, create=False) as store:
        assert store.blueprints() == [added]
        assert store.get("wide_depthwise") == store.get(added.blueprint_id) == added
        assert store.kernels() == store.kernels("conv1x1") == [KERNEL]
        assert store.outcomes("conv1x1") == [OUTCOME]
        assert store.kernels("bottleneck") == store.outcomes("bottleneck") == []


def test_a_newer_record_replaces_the_older(database: DatabaseConfig):
    with opened(database) as store:
        for forward_s in (2e-4, 3e-4):
            store.put_kernel(dataclasses.replace(KERNEL, forward_s=forward_s))
            store.put_outcomes([dataclasses.replace(OUTCOME, gain=forward_s, loss_off=None)])
        store.put_kernel(dataclasses.replace(KERNEL, device="other"))
        assert [kernel.forward_s for kernel in store.kernels()] == [3e-4, 1e-4]
        assert [(outcome.gain, outcome.loss_off) for outcome in store.outcomes()] == [(3e-4, None)]


def test_a_name_means_one_blueprint_for_good(database: DatabaseConfig):
    with opened(database) as store:
        store.add(text())
        store.add(text(summary="another summary"))
        with pytest.raises(ConfigError, match=r"^FILE: .*holds another blueprint 'wide_depthwise'.*rename this one$"):
            store.add(text(kinds=["after"]), where="FILE")
        assert len(store.blueprints()) == 1


def test_a_blueprint_is_quarantined_while_one_of_its_kernels_crashed_or_hung(database: DatabaseConfig):
    with opened(database) as store:
        store.put_kernel(dataclasses.replace(KERNEL, status="too_large", reason="memory"))
        assert store.quarantined("conv1x1") is None
        store.put_kernel(dataclasses.replace(KERNEL, status="crashed", reason="exit code 3"))
        assert "exit code 3" in (store.quarantined("conv1x1") or "")
        store.put_kernel(KERNEL)
        assert store.quarantined("conv1x1") is None


def test_a_library_of_another_version_is_refused_and_left_alone(database: DatabaseConfig):
    with opened(database):
        pass
    engine = open_engine(database_url(database, outputs_dir=Path()), timeout_s=5)
    with engine.begin() as connection:
        connection.execute(sql("UPDATE urza_schema SET version = 99"))
    engine.dispose()
    for create in (True, False):
        with pytest.raises(StoreError, match=r"schema version 99, this version of Esper reads 1; use the version"):
            opened(database, create=create)


def test_a_library_is_only_created_with_create(database: DatabaseConfig):
    with pytest.raises(StoreError, match="holds no blueprint library; create one with: esper urza import FILE"):
        opened(database, create=False)


def test_concurrent_writers_all_succeed(database: DatabaseConfig):
    start = threading.Barrier(6)

    def write(number: int) -> None:
        start.wait()
        with opened(database) as store:
            store.add(text(f"number_{number}"))
            store.put_kernel(KERNEL)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    with opened(database) as store:
        assert len(store.blueprints()) == 6
        assert store.kernels() == [KERNEL]


def test_a_definition_that_was_tampered_with_is_refused(tmp_path: Path):
    database = DatabaseConfig(url=f"sqlite:///{tmp_path}/library.db")
    with opened(database) as store:
        store.add(text())
    with contextlib.closing(sqlite3.connect(tmp_path / "library.db")) as connection, connection:
        connection.execute("UPDATE urza_blueprints SET definition = replace(definition, 'depthwise', 'system')")
    with opened(database) as store, pytest.raises(StoreError, match=r"library.db: wide_depthwise: .*'system'"):
        store.get("wide_depthwise")


def test_an_unknown_name_is_an_error_that_lists_the_known_names(tmp_path: Path):
    with opened(DatabaseConfig(url=f"sqlite:///{tmp_path}/library.db")) as store:
        store.add(text())
        with pytest.raises(ConfigError, match=r"no blueprint 'x' in .*\(known: wide_depthwise\)"):
            store.get("x")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://me:secret@host/db", "database.url must be sqlite"),
        ("not a url with secret", "database.url must be sqlite"),
        (
            "postgresql://me:secret@127.0.0.1:1/db",
            r"postgresql\+psycopg://127.0.0.1:1/db: .*check the server",
        ),
    ],
)
def test_an_unusable_database_is_an_error_of_one_line_without_its_password(url: str, says: str):
    with pytest.raises(StoreError, match=says) as refused:
        opened(DatabaseConfig(url=url, timeout_s=2))
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_server_that_hangs_is_an_error_after_the_timeout(postgres: str):
    folder = Path(make_url(postgres).query["host"])
    pid = int((folder / "data" / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        started = time.monotonic()
        with pytest.raises(StoreError, match="timeout"):
            opened(DatabaseConfig(url=postgres, timeout_s=2))
        assert time.monotonic() - started < 20
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_file_that_is_no_database_is_an_error_of_one_line(tmp_path: Path):
    (tmp_path / "library.db").write_text("something else altogether" * 100)
    with pytest.raises(StoreError, match="file is not a database; check"):
        opened(DatabaseConfig(url=f"sqlite:///{tmp_path}/library.db"))


def test_by_default_it_lies_in_the_outputs_folder(tmp_path: Path):
    with contextlib.closing(Store(DatabaseConfig(), outputs_dir=tmp_path / "outputs", create=True)):
        assert (tmp_path / "outputs" / "urza.db").is_file()


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("kernels", "in_shape", "8xfourx4"),
        ("kernels", "out_shape", b"\xff"),
        ("kernels", "batch_size", "many"),
        ("kernels", "status", "fine"),
        ("kernels", "memory_bytes", -1),
        ("kernels", "forward_s", "fast"),
        ("kernels", "backward_s", float("inf")),
        ("kernels", "reason", b"3.5"),
        ("outcomes", "site", b"layer1"),
        ("outcomes", "gain", "much"),
        ("outcomes", "out_shape", "8x"),
        ("outcomes", "epoch", -3),
        ("blueprints", "definition", 7),
        ("blueprints", "definition", '{"a":' * 6000),
        ("blueprints", "blueprint_id", "another@0000"),
    ],
)
def test_a_damaged_row_is_one_line_and_never_believed(tmp_path: Path, table: str, column: str, value: object) -> None:
    file = tmp_path / "library.db"
    with opened(DatabaseConfig(url=f"sqlite:///{file}")) as store:
        store.add(text())
        store.put_kernel(KERNEL)
        store.put_outcomes([OUTCOME])
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute(f"UPDATE urza_{table} SET {column} = ?", (value,))
            connection.commit()
        with pytest.raises(StoreError) as error:
            getattr(store, table)()
    assert str(file) in str(error.value)
    assert "damaged" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_time_of_a_record_costs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "library.db"
    with opened(DatabaseConfig(url=f"sqlite:///{file}")) as store:
        added = store.add(text())
        store.put_kernel(KERNEL)
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("UPDATE urza_kernels SET measured_at = 'yesterday'")
            connection.execute("UPDATE urza_blueprints SET added_at = 'yesterday'")
            connection.commit()
        assert store.kernels() == [KERNEL]
        assert store.blueprints() == [store.get("wide_depthwise")] == [added]
