"""Tables of the library's database, and the version of their schema."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    DateTime,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.types import BigInteger

from esper.errors import StoreError

__all__ = [
    "KERNEL_KEY",
    "OUTCOME_KEY",
    "VERSION",
    "blueprints",
    "create",
    "exist",
    "kernels",
    "outcomes",
    "require_version",
]

VERSION = 1
_LOCK = 5_927_731_004
"""Key of PostgreSQL's advisory lock for creating the tables."""

_metadata = MetaData()

_schema = Table("urza_schema", _metadata, Column("version", Integer, primary_key=True, autoincrement=False))

blueprints = Table(
    "urza_blueprints",
    _metadata,
    Column("name", String(48), primary_key=True),
    Column("blueprint_id", String(80), nullable=False, unique=True),
    Column("content_hash", String(64), nullable=False),
    Column("definition", Text, nullable=False),
    Column("added_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

KERNEL_KEY = ("blueprint_id", "in_shape", "out_shape", "batch_size", "device", "torch_version")

kernels = Table(
    "urza_kernels",
    _metadata,
    Column("kernel_id", Integer, primary_key=True),
    *(Column(name, Integer if name == "batch_size" else String(120), nullable=False) for name in KERNEL_KEY),
    Column("status", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("num_parameters", BigInteger),
    Column("num_macs", BigInteger),
    Column("memory_bytes", BigInteger),
    *(Column(name, Float) for name in ("forward_s", "backward_s", "compile_s")),
    *(Column(name, Float) for name in ("compiled_forward_s", "compiled_backward_s")),
    Column("measured_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    UniqueConstraint(*KERNEL_KEY, name="urza_kernels_key"),
)

OUTCOME_KEY = ("experiment_name", "run_name", "graft_id")

outcomes = Table(
    "urza_outcomes",
    _metadata,
    Column("outcome_id", Integer, primary_key=True),
    Column("experiment_name", String(64), nullable=False),
    Column("run_name", String(120), nullable=False),
    Column("graft_id", Integer, nullable=False),
    Column("blueprint_id", String(80), nullable=False, index=True),
    Column("site", String(200), nullable=False),
    Column("in_shape", String(120)),
    Column("out_shape", String(120)),
    *(Column(name, Integer, nullable=False) for name in ("epoch", "num_examples")),
    *(Column(name, Float) for name in ("loss_off", "gain", "lower_bound", "confidence")),
    Column("kept", Boolean, nullable=False),
    *(Column(name, BigInteger, nullable=False) for name in ("added_parameters", "added_macs", "cost_macs")),
    Column("cost_s", Float, nullable=False),
    Column("recorded_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    UniqueConstraint(*OUTCOME_KEY, name="urza_outcomes_key"),
)


def exist(connection: Connection) -> bool:
    """Whether a database holds a library, of any version."""
    return inspect(connection).has_table(_schema.name)


def create(connection: Connection) -> None:
    """Create the tables unless they exist; SQLite needs a writing transaction."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))  # against concurrent creation
    if not exist(connection):
        _metadata.create_all(connection)
        connection.execute(insert(_schema).values(version=VERSION))


def require_version(connection: Connection, *, where: str) -> None:
    """Check the version of the schema.

    Args:
        connection: in a transaction.
        where: name of the database for the error.

    Raises:
        StoreError: it is another version.
    """
    versions = connection.execute(select(_schema.c.version)).scalars().all()
    if versions != [VERSION]:
        raise StoreError(
            f"{where} has schema version {', '.join(map(str, versions)) or 'none'}, this version of Esper reads "
            f"{VERSION}; use the version of Esper that made it, or another database.url"
        )
