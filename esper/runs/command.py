"""`esper runs list` and `esper runs rm`: what they print and ask."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.live import Live
from rich.table import Table
from rich.text import Text

from esper.errors import RunError
from esper.runs.listing import Listing, Row, parse_filters
from esper.runs.removal import Removal
from esper.sweep.status import STYLES
from esper.terminal import table_console
from esper.tracking.formatting import age, clock, memory, metric, number

__all__ = ["listing", "remove"]

_COLUMNS = ("experiment", "name", "status", "figure", "MACs", "time", "age")
_QUIET_S = 60.0
_NUMERIC = ("figure", "MACs", "time", "age")


def listing(
    folder: Path,
    *,
    sort: str,
    is_reversed: bool,
    filters: Sequence[str],
    as_json: bool,
    watch: bool,
    interval_s: float = 2.0,
) -> int:
    """Print the runs at and below a folder; with `watch` until none has run for a minute: a search adds runs.

    Raises:
        RunError: there is none.
        ConfigError: a filter names no column and no setting.
    """
    if as_json and watch:
        raise RunError("--json --watch: print once, or watch; leave one of them out")
    found = Listing(folder=folder, filters=parse_filters(filters), sort=sort, is_reversed=is_reversed)
    rows = found.rows()
    if as_json:
        sys.stdout.write(f"{json.dumps([row.as_json() for row in rows], indent=2)}\n")
        return 0
    console = table_console()
    if not watch:
        console.print(_table(rows))
        return 0
    with Live(_table(rows), console=console, auto_refresh=False) as live:
        while found.quiet_s < _QUIET_S:
            time.sleep(interval_s)
            rows = found.rows()
            live.update(_table(rows), refresh=True)
    return 0


def remove(names: Sequence[str], *, is_sure: bool) -> int:
    """Remove the folders of runs, after a question; nothing unless all of them can be removed.

    Args:
        names: folders, or EXPERIMENT/RUN in outputs.
        is_sure: do not ask.

    Raises:
        RunError: one is no run, or may be running; or there is nobody to ask.
    """
    with Removal([_folder(name) for name in names]) as removal:
        size = memory(removal.num_bytes)
        what = f"{len(removal.run_dirs)} run{'s' * (len(removal.run_dirs) > 1)}, {size}"
        if not is_sure:
            if not sys.stdin.isatty():
                raise RunError(f"esper runs rm: nobody can be asked whether to remove {what}; add --yes")
            for run_dir in removal.run_dirs:
                sys.stdout.write(f"{shlex.quote(str(run_dir))}\n")
            sys.stdout.write(f"Remove {what}, with checkpoints, for good? [y/N] ")
            sys.stdout.flush()
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                sys.stdout.write("nothing was removed\n")
                return 1
        for line in removal.remove():
            sys.stdout.write(f"{line}\n")
        sys.stdout.write(f"removed {what}\n")
    return 0


def _folder(name: str) -> Path:
    given, in_outputs = Path(name).expanduser(), Path("outputs", name)
    return in_outputs if not given.exists() and in_outputs.exists() else given


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in _COLUMNS:
        table.add_column(heading, justify="right" if heading in _NUMERIC else "left", overflow="fold")
    for row in rows:
        figure = "" if row.figure is None else f"{row.split} {row.headline.label} {metric(row.figure, row.headline)}"
        table.add_row(
            row.experiment,
            row.name,
            Text(row.status, style=STYLES.get(row.status, "")),
            figure,
            number(row.macs),
            clock(row.seconds),
            age(time.time() - row.seen_s),
        )
    return table
