"""What the checks of `esper doctor` take, a planned run, and return, a finding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # its import may fail with the installed package versions
    from esper.configs import TolariaConfig

__all__ = [
    "FAILED", "NOT_USED", "OK", "WARNING", "Finding", "PlannedRun", "failed", "failed_with", "not_used", "ok",
    "warning",
]  # fmt: skip

OK, WARNING, FAILED, NOT_USED = "ok", "warning", "failed", "not used"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """The run that the command line would start.

    Attributes:
        config: its settings.
        run_dir: its run folder.
        outputs_dir: parent folder of all runs.
        launcher: the choice of `hydra/launcher`.
        probe: waits for and returns the result of `probe.probe`.
    """

    config: TolariaConfig
    run_dir: Path
    outputs_dir: Path
    launcher: str
    probe: Callable[[], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Result of a check.

    Attributes:
        status: ok, warning, failed or not used.
        found: description of the current state.
        remedy: how to fix it; empty unless a warning or failed.
    """

    status: str
    found: str
    remedy: str = ""


def ok(found: str) -> Finding:
    """As it should be."""
    return Finding(status=OK, found=found)


def warning(found: str, remedy: str) -> Finding:
    """The run works, but not well."""
    return Finding(status=WARNING, found=found, remedy=remedy)


def failed(found: str, remedy: str) -> Finding:
    """The run would fail, or differ from its settings."""
    return Finding(status=FAILED, found=found, remedy=remedy)


def failed_with(message: str) -> Finding:
    """The finding for the message of an `EsperError`, `PROBLEM; REMEDY`."""
    found, _, remedy = message.rpartition("; ")
    return failed(found or remedy, remedy if found else "see the message")


def not_used(found: str) -> Finding:
    """This run does not need it."""
    return Finding(status=NOT_USED, found=found)
