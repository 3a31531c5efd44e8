"""The library's database: declared blueprints, characterised kernels, and outcomes of past growth."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, Table, delete, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from esper.configs import DatabaseConfig
from esper.errors import ConfigError, StoreError, one_line
from esper.redact import without_credentials
from esper.urza import catalogue, tables
from esper.urza.database import database_url, open_engine
from esper.urza.definition import parse
from esper.urza.kernel import Blueprint
from esper.urza.records import BROKEN, KernelRecord, Outcome, R, from_row, to_row

__all__ = ["Store", "find_blueprint"]

_BLUEPRINTS = select(*(tables.blueprints.c[name] for name in ("name", "blueprint_id", "definition")))


class Store:
    """Owner of a connection to the library; `close` it. Thread-safe.

    Args:
        config: which database.
        outputs_dir: folder of the default database.
        create: create the library if there is none, instead of raising.

    Raises:
        StoreError: here and in every method: the database cannot be reached or used, or is of another version.
    """

    def __init__(self, config: DatabaseConfig, *, outputs_dir: Path, create: bool = False) -> None:
        url = database_url(config, outputs_dir=outputs_dir)
        self.where = without_credentials(url.render_as_string(hide_password=True))
        self._engine = open_engine(url, timeout_s=config.timeout_s)
        file = Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None
        try:
            if file is not None and create:
                file.parent.mkdir(parents=True, exist_ok=True)
            elif file is not None and not file.exists():
                raise self._missing()
            with self._begin(writes=create) as connection:
                if create:
                    tables.create(connection)
                elif not tables.exist(connection):
                    raise self._missing()
                tables.require_version(connection, where=self.where)
        except OSError as error:
            raise StoreError(f"{self.where}: cannot be created ({error.strerror}); give another database.url") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all connections; safe to call twice."""
        self._engine.dispose()

    # --- blueprints -----------------------------------------------------------------------------------------------

    def add(self, text: str | bytes, *, where: str = "blueprint") -> Blueprint:
        """Add a declared blueprint, unless the library has it already.

        Raises:
            ConfigError: it is invalid, or another blueprint has its name.
        """
        definition = parse(text, where=where)
        blueprint = catalogue.declare(text, where=where)
        values = {
            "name": definition.name,
            "blueprint_id": definition.blueprint_id,
            "content_hash": definition.content_hash,
            "definition": definition.text,
        }
        columns = tables.blueprints.c
        with self._begin(writes=True) as connection:
            known = connection.execute(select(columns.blueprint_id).where(columns.name == definition.name)).scalar()
            if known is None:
                connection.execute(insert(tables.blueprints).values(values))
            elif known != definition.blueprint_id:
                raise ConfigError(
                    f"{where}: {self.where} holds another blueprint {definition.name!r} ({known}), which runs may use; "
                    "rename this one"
                )
        return blueprint

    def blueprints(self) -> list[Blueprint]:
        """All declared blueprints, sorted by name."""
        with self._begin() as connection:
            rows = connection.execute(_BLUEPRINTS.order_by(tables.blueprints.c.name)).all()
        return [self._blueprint(row) for row in rows]

    def get(self, name: str) -> Blueprint:
        """Look up a declared blueprint by its name or id.

        Raises:
            ConfigError: there is none.
        """
        columns = tables.blueprints.c
        is_it = columns.blueprint_id == name if "@" in name else columns.name == name
        with self._begin() as connection:
            row = connection.execute(_BLUEPRINTS.where(is_it)).one_or_none()
            names = connection.execute(select(columns.name).order_by(columns.name)).scalars().all()
        if row is None:
            raise ConfigError(
                f"no blueprint {name!r} in {self.where} (known: {', '.join(map(str, names)) or 'none'}); add it with: "
                "esper urza import FILE"
            )
        return self._blueprint(row)

    def _blueprint(self, row: Row[Any]) -> Blueprint:
        where = f"{self.where}: {row.name}"
        try:
            if not isinstance(row.definition, str):
                raise ConfigError(f"{where}: the definition is no text")
            blueprint = catalogue.declare(row.definition, where=where)
            if blueprint.blueprint_id != row.blueprint_id:
                raise ConfigError(f"{where}: is {blueprint.blueprint_id} and not {row.blueprint_id}")
        except ConfigError as error:
            raise StoreError(f"{error}; the row is damaged: remove it and import the blueprint again") from None
        return blueprint

    # --- kernels --------------------------------------------------------------------------------------------------

    def put_kernel(self, record: KernelRecord) -> None:
        """Store a characterised kernel; replaces an earlier record of it."""
        self._replace(tables.kernels, to_row(record), key=tables.KERNEL_KEY)

    def kernels(self, blueprint_id: str | None = None) -> list[KernelRecord]:
        """Characterised kernels, of one blueprint or all."""
        return self._select(KernelRecord, tables.kernels, blueprint_id, order="kernel_id")

    def delete_kernels(self, blueprint_id: str) -> None:
        """Delete all kernels of a blueprint, which also ends its quarantine."""
        with self._begin(writes=True) as connection:
            connection.execute(delete(tables.kernels).where(tables.kernels.c.blueprint_id == blueprint_id))

    def quarantined(self, blueprint_id: str) -> str | None:
        """Why a blueprint is quarantined; None: it is not quarantined."""
        for kernel in self.kernels(blueprint_id):
            if kernel.status in BROKEN:
                return f"{kernel.status} at {kernel.in_shape} on {kernel.device}: {kernel.reason}"
        return None

    # --- outcomes -------------------------------------------------------------------------------------------------

    def put_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Store outcomes; replaces earlier records of the same modules."""
        for outcome in outcomes:
            self._replace(tables.outcomes, to_row(outcome), key=tables.OUTCOME_KEY)

    def outcomes(self, blueprint_id: str | None = None) -> list[Outcome]:
        """Outcomes of past growth, of one blueprint or all."""
        return self._select(Outcome, tables.outcomes, blueprint_id, order="outcome_id")

    # --- SQL ------------------------------------------------------------------------------------------------------

    def _replace(self, table: Table, row: dict[str, Any], *, key: Sequence[str]) -> None:
        with self._begin(writes=True) as connection:
            upsert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table).values(row)
            updates = {name: value for name, value in row.items() if name not in key}
            connection.execute(upsert.on_conflict_do_update(index_elements=list(key), set_=updates))

    def _select(self, kind: type[R], table: Table, blueprint_id: str | None, *, order: str) -> list[R]:
        query = select(*(table.c[field.name] for field in dataclasses.fields(kind))).order_by(table.c[order])
        if blueprint_id is not None:
            query = query.where(table.c.blueprint_id == blueprint_id)
        with self._begin() as connection:
            rows = connection.execute(query).mappings().all()
        return [from_row(kind, dict(row), where=self.where) for row in rows]

    @contextlib.contextmanager
    def _begin(self, *, writes: bool = False) -> Iterator[Connection]:
        """Run a transaction; errors of the database become a `StoreError`."""
        try:
            with self._engine.connect() as connection:
                connection.execution_options(esper_writes=writes)
                with connection.begin():
                    yield connection
        except DBAPIError as error:
            raise StoreError(
                f"{self.where}: {one_line(error.orig)}; check the server, the file and database.url"
            ) from None
        except SQLAlchemyError as error:
            raise StoreError(f"{self.where}: {one_line(error)}") from None

    def _missing(self) -> StoreError:
        return StoreError(f"{self.where} holds no blueprint library; create one with: esper urza import FILE")


def find_blueprint(name: str, store: Store | None) -> Blueprint:
    """Look up a blueprint by its name or id, built-in or of the library.

    Raises:
        EsperError: there is none, or the library cannot be used.
    """
    return catalogue.get(name) if name in catalogue.CATALOGUE or store is None else store.get(name)
