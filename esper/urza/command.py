"""`esper urza list|show|export|import|record`: read and fill the blueprint library."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.markup import escape
from rich.table import Table

from esper.configs import DatabaseConfig
from esper.console import Console
from esper.errors import ConfigError, RunError
from esper.files import write_atomically
from esper.tracking import run_folders
from esper.urza import catalogue
from esper.urza.definition import MAX_BYTES
from esper.urza.records import KernelRecord, Outcome, read_outcomes
from esper.urza.store import Store, find_blueprint

__all__ = ["OUTPUTS", "add", "export", "list_blueprints", "open_if_exists", "open_library", "record", "show"]

OUTPUTS = Path("outputs")
"""Folder of the default library, in the working directory."""


def open_library(url: str | None, *, create: bool = False) -> contextlib.closing[Store]:
    """Open the library at a URL, or the default one.

    Raises:
        StoreError: it cannot be used, or does not exist and `create` is false.
    """
    return contextlib.closing(Store(DatabaseConfig(url=url), outputs_dir=OUTPUTS, create=create))


def list_blueprints(url: str | None, *, as_json: bool) -> int:
    """Print all blueprints, built-in and declared, with counts of their kernels and outcomes; returns the exit code."""
    with open_if_exists(url) as store:
        blueprints = [*catalogue.CATALOGUE.values(), *(store.blueprints() if store else ())]
        all_kernels, all_outcomes = (store.kernels(), store.outcomes()) if store else ([], [])
    rows = []
    for blueprint in blueprints:
        name = blueprint.blueprint_id
        kernels = [kernel for kernel in all_kernels if kernel.blueprint_id == name]
        outcomes = [outcome for outcome in all_outcomes if outcome.blueprint_id == name]
        gains = [outcome.gain for outcome in outcomes if outcome.gain is not None]
        row: dict[str, Any] = {
            "blueprint": name,
            "category": blueprint.category,
            "complexity": blueprint.complexity,
            "sites": ", ".join(sorted(blueprint.kinds)),
            "kernels": sum(kernel.status == "ready" for kernel in kernels),
            "refused": sum(kernel.status != "ready" for kernel in kernels),
            "judged": len(outcomes),
            "kept": sum(outcome.kept for outcome in outcomes),
            "median_gain": median(gains) if gains else None,
            "summary": blueprint.summary,
        }
        rows.append(row)
    if as_json:
        _write_line(json.dumps(rows, indent=1))
    else:
        _print_table(rows)
    return 0


def show(name: str, url: str | None, *, as_json: bool) -> int:
    """Print a blueprint with its kernels and outcomes; returns the exit code."""
    with open_if_exists(url) as store:
        blueprint = find_blueprint(name, store)
        kernels = store.kernels(blueprint.blueprint_id) if store else []
        outcomes = store.outcomes(blueprint.blueprint_id) if store else []
    content = {
        "blueprint": blueprint.blueprint_id,
        "category": blueprint.category,
        "complexity": blueprint.complexity,
        "sites": sorted(blueprint.kinds),
        "summary": blueprint.summary,
        "source": blueprint.source,
        "definition": json.loads(blueprint.definition) if blueprint.definition else None,
        "kernels": [dataclasses.asdict(kernel) for kernel in kernels],
        "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes],
    }
    if as_json:
        _write_line(json.dumps(content, indent=1))
        return 0
    for key in ("blueprint", "category", "complexity", "summary", "source"):
        _write_line(f"{key:11}{content[key]}")
    _write_line(f"{'sites':11}{', '.join(sorted(blueprint.kinds))}")
    if blueprint.definition:
        _write_line(json.dumps(json.loads(blueprint.definition)["layers"], indent=1))
    _print_table([_kernel_row(kernel) for kernel in kernels])
    _print_table([_outcome_row(outcome) for outcome in outcomes])
    return 0


def export(name: str, url: str | None, out: Path | None) -> int:
    """Write a declared blueprint's definition to a file, or print it; returns the exit code.

    Raises:
        ConfigError: it is built in, or the file exists.
    """
    with open_if_exists(url) as store:
        blueprint = find_blueprint(name, store)
    if blueprint.definition is None:
        raise ConfigError(f"{name!r} is built in; only declared blueprints can be exported")
    content = json.dumps(json.loads(blueprint.definition), indent=1)
    if out is None:
        _write_line(content)
        return 0
    if out.exists():
        raise ConfigError(f"{out} exists; choose another file with --out, or remove it")
    write_atomically(out, content + "\n")
    return 0


def add(files: Sequence[Path], url: str | None) -> int:
    """Add definitions to the library, created if necessary; returns the exit code.

    Raises:
        ConfigError, StoreError: a file or definition is invalid; those before it have been added.
    """
    with open_library(url, create=True) as store:
        for file in files:
            try:
                with file.open("rb") as opened:
                    content = opened.read(MAX_BYTES + 1)
            except OSError as error:
                raise ConfigError(f"{file}: cannot be read ({error.strerror}); give a definition in JSON") from None
            _write_line(store.add(content, where=str(file)).blueprint_id)
    return 0


def record(run_dirs: Sequence[Path], url: str | None) -> int:
    """Store the outcomes of finished runs in the library; returns the exit code.

    Raises:
        RunError: a folder holds no run.
    """
    folders = [folder for path in run_dirs for folder in run_folders(path)]
    if not folders:
        raise RunError(f"no journal.jsonl in {', '.join(map(str, run_dirs))}; give folders of runs")
    with open_library(url, create=True) as store:
        for run_dir in folders:
            outcomes = read_outcomes(run_dir)
            store.put_outcomes(outcomes)
            _write_line(f"{run_dir}: {len(outcomes)} judged modules")
    return 0


@contextlib.contextmanager
def open_if_exists(url: str | None) -> Iterator[Store | None]:
    """Open the library; None if no URL is given and the default library does not exist."""
    if url is None and not (OUTPUTS / "urza.db").exists():
        yield None
        return
    with open_library(url) as store:
        yield store


def _kernel_row(kernel: KernelRecord) -> dict[str, Any]:
    def milliseconds(seconds: float | None) -> str | None:
        return None if seconds is None else f"{1000 * seconds:.3f}"

    return {
        "in": "x".join(map(str, kernel.in_shape)),
        "out": "x".join(map(str, kernel.out_shape)),
        "batch": kernel.batch_size,
        "device": kernel.device,
        "torch": kernel.torch_version,
        "status": kernel.status,
        "parameters": kernel.num_parameters,
        "MACs": kernel.num_macs,
        "MiB": None if kernel.memory_bytes is None else f"{kernel.memory_bytes / 2**20:.1f}",
        "forward ms": milliseconds(kernel.forward_s),
        "backward ms": milliseconds(kernel.backward_s),
        "compiled ms": milliseconds(kernel.compiled_forward_s),
        "reason": kernel.reason,
    }


def _outcome_row(outcome: Outcome) -> dict[str, Any]:
    return {
        "run": f"{outcome.experiment_name}/{outcome.run_name}",
        "site": outcome.site,
        "gain": outcome.gain,
        "lower bound": outcome.lower_bound,
        "kept": outcome.kept,
        "added MACs": outcome.added_macs,
        "cost MACs": outcome.cost_macs,
    }


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table without its empty columns."""
    names = [name for name in (rows[0] if rows else ()) if any(row[name] not in (None, "") for row in rows)]
    if not names:
        return
    table = Table(*names, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(_format(row[name]) for name in names))
    Console(width=None if sys.stdout.isatty() else 240).print(table)


def _format(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case _:
            return escape(str(value))


def _write_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
