"""`sweep.json`: the runs of a sweep, in the folder that theirs are in, and what was asked of each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock

from esper.errors import RunError
from esper.tracking.files import write_atomically

__all__ = ["note_members", "read_members"]

_FILE = "sweep.json"


def note_members(sweep_dir: Path, members: Mapping[str, Sequence[str]]) -> None:
    """Add members, each with its overrides by the name of its run, to those that the folder has."""
    sweep_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(sweep_dir / f".{_FILE}.lock"):
        known = read_members(sweep_dir) | {name: list(overrides) for name, overrides in members.items()}
        write_atomically(sweep_dir / _FILE, json.dumps(known, indent=1) + "\n")


def read_members(sweep_dir: Path) -> dict[str, list[str]]:
    """The overrides of each member by the name of its run; none where no sweep was launched.

    Raises:
        RunError: the file is damaged.
    """
    try:
        content = json.loads((sweep_dir / _FILE).read_text())
        return {str(name): [str(one) for one in overrides] for name, overrides in content.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError):
        raise RunError(f"{sweep_dir / _FILE} is unreadable; remove it, the sweep's command writes it anew") from None
