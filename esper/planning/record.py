"""`plan.json`: a plan with everything that it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from esper.errors import RunError
from esper.files import read_json, write_atomically
from esper.launch.planned import Decision
from esper.planning.observations import Observation, Plan

__all__ = ["SCHEMA", "PlanRecord", "as_text", "read", "write"]

_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """A plan and its observations.

    Attributes:
        plan: the plan.
        observations: what it was made from.
        command: the recommended command.
        decision: the same for `morphogenetic=planned`.
        fractions: of what grows, of the sizes in between.
        version: of the file.
    """

    plan: Plan
    observations: tuple[Observation, ...]
    command: str = ""
    decision: Decision | None = None
    fractions: tuple[float, ...] = ()
    version: int = _VERSION


SCHEMA = TypeAdapter(PlanRecord)
"""Of the file."""


def as_text(record: PlanRecord) -> str:
    """The record as strict JSON."""
    return SCHEMA.dump_json(record, indent=1).decode() + "\n"


def write(record: PlanRecord, path: Path) -> None:
    """Write it; raises `WriteError`."""
    write_atomically(path, as_text(record))


def read(path: Path) -> PlanRecord:
    """Read it.

    Raises:
        RunError: it is missing, damaged, or of another version.
    """
    try:
        record = read_json(path, SCHEMA)
    except FileNotFoundError:
        raise RunError(f"{path} is missing: there is no plan in that folder; make one with esper plan") from None
    except RunError as error:
        raise RunError(f"{error}; the command that made the plan writes it again, from the same pilots") from None
    if record.version != _VERSION:
        raise RunError(f"{path} has version {record.version}; this Esper reads version {_VERSION}; plan again")
    return record
