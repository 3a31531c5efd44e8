"""What a check of `esper doctor` looks at, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the versions may be such that it cannot be imported
    from esper.configs import TolariaConfig

__all__ = ["FAILED", "NOT_USED", "OK", "WARNING", "Finding", "Subject", "failed", "not_used", "ok", "warning"]

OK, WARNING, FAILED, NOT_USED = "ok", "warning", "failed", "not used"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The run that would be started.

    Attributes:
        config: its settings.
        run_dir: its folder.
        outputs_dir: the folder that it shares with other runs.
        launcher: choice of `hydra/launcher`.
        probe: what torch found, as `probe.probe` returns it; waits for it.
    """

    config: TolariaConfig
    run_dir: Path
    outputs_dir: Path
    launcher: str
    probe: Callable[[], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found.

    Attributes:
        status: ok, warning, failed, or not used (by the run that would be started).
        found: what there is.
        remedy: what to do about it; empty unless it is a warning or has failed.
    """

    status: str
    found: str
    remedy: str = ""


def ok(found: str) -> Finding:
    """As it should be."""
    return Finding(status=OK, found=found)


def warning(found: str, remedy: str) -> Finding:
    """Works, but not as well as it could."""
    return Finding(status=WARNING, found=found, remedy=remedy)


def failed(found: str, remedy: str) -> Finding:
    """A run would fail, or do something else than it was asked for."""
    return Finding(status=FAILED, found=found, remedy=remedy)


def not_used(found: str) -> Finding:
    """The run would not need it."""
    return Finding(status=NOT_USED, found=found)
