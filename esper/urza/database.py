"""Connections to the library's database, SQLite or PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from esper.configs import DatabaseConfig
from esper.errors import StoreError

__all__ = ["database_url", "open_engine"]


def database_url(config: DatabaseConfig, *, outputs_dir: Path) -> URL:
    """URL of the library; by default a SQLite file in `outputs_dir`.

    Raises:
        StoreError: the configured URL is neither SQLite nor PostgreSQL.
    """
    if config.url is None:
        return URL.create("sqlite", database=str(outputs_dir / "urza.db"))
    try:
        url = make_url(config.url)
        backend = url.get_backend_name()
    except (ArgumentError, ValueError):  # not its message, which may contain a password
        backend = ""
    if backend not in ("sqlite", "postgresql") or (backend == "sqlite" and not url.database):
        raise StoreError("database.url must be sqlite:///FILE, postgresql://USER@HOST/DATABASE or null")
    return url.set(drivername="postgresql+psycopg") if backend == "postgresql" else url


def open_engine(url: URL, *, timeout_s: float) -> Engine:
    """Create an engine whose connections and statements time out after `timeout_s`.

    Raises:
        StoreError: the driver is not installed.
    """
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, timeout_s=timeout_s)
    milliseconds = round(1000 * timeout_s)
    options = f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}"
    try:
        return create_engine(url, connect_args={"connect_timeout": max(2, round(timeout_s)), "options": options})
    except (ImportError, NoSuchModuleError):
        raise StoreError("database.url: psycopg is not installed; pip install 'esper-train[postgres]'") from None


def _sqlite(url: URL, *, timeout_s: float) -> Engine:
    engine = create_engine(url, connect_args={"timeout": timeout_s})

    @event.listens_for(engine, "connect")
    def disable_driver_transactions(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # Two transactions that read and then write would fail at once instead of waiting for the lock.
        writes = connection.get_execution_options().get("esper_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
