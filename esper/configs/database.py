"""The blueprint library, and whether a run adds to it."""

from __future__ import annotations

from dataclasses import dataclass

from esper.configs.schema import setting

__all__ = ["DatabaseConfig"]


@dataclass(kw_only=True)
class DatabaseConfig:
    """Group `database`."""

    url: str | None = setting(
        None,
        "URL of the blueprint library, such as postgresql://lab@host/esper (password in PGPASSWORD or ~/.pgpass); "
        "null: urza.db (SQLite) in the outputs folder",
    )
    record_outcomes: bool = setting(False, "when a run finishes, record in the library what each grown module gained")
    timeout_s: float = setting(10.0, "seconds to wait for a database that is busy or does not respond", above=0)
