"""`esper urza list|show|export|import|record`: look into the blueprint library, and fill it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from esper.configs import DatabaseConfig
from esper.errors import ConfigError, RunError
from esper.tracking import run_folders, write_atomically
from esper.urza import catalogue
from esper.urza.definition import MAX_BYTES
from esper.urza.kernel import Blueprint
from esper.urza.outcomes import read_outcomes
from esper.urza.records import KernelRecord, Outcome
from esper.urza.store import Store

__all__ = ["OUTPUTS", "add", "export", "find", "listing", "maybe_library", "open_library", "record", "show"]

OUTPUTS = Path("outputs")
"""Folder of the library that no URL is given for, as a run's is."""


def open_library(url: str | None, *, create: bool = False) -> contextlib.closing[Store]:
    """The library at a URL, or of this folder's runs.

    Raises:
        StoreError: it cannot be used, or is not there.
    """
    return contextlib.closing(Store(DatabaseConfig(url=url), outputs_dir=OUTPUTS, create=create))


def listing(url: str | None, *, as_json: bool) -> int:
    """Print what may grow, built in or declared, and what is known of it; returns the exit code."""
    rows = []
    blueprints, kernels, outcomes = _all(url)
    for one in blueprints:
        name = one.blueprint_id
        known = [kernel for kernel in kernels if kernel.blueprint_id == name]
        judged = [outcome for outcome in outcomes if outcome.blueprint_id == name]
        gains = [outcome.gain for outcome in judged if outcome.gain is not None]
        row: dict[str, Any] = {
            "blueprint": name,
            "category": one.category,
            "complexity": one.complexity,
            "sites": ", ".join(sorted(one.kinds)),
            "kernels": sum(kernel.status == "ready" for kernel in known),
            "refused": sum(kernel.status != "ready" for kernel in known),
            "judged": len(judged),
            "kept": sum(outcome.kept for outcome in judged),
            "median_gain": median(gains) if gains else None,
            "summary": one.summary,
        }
        rows.append(row)
    if as_json:
        _say(json.dumps(rows, indent=1))
    else:
        _print(rows)
    return 0


def show(name: str, url: str | None, *, as_json: bool) -> int:
    """Print all that is known of one blueprint; returns the exit code."""
    with maybe_library(url) as store:
        blueprint = find(name, store)
        kernels = store.kernels(blueprint.blueprint_id) if store else []
        outcomes = store.outcomes(blueprint.blueprint_id) if store else []
    found = {
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
        _say(json.dumps(found, indent=1))
        return 0
    for key in ("blueprint", "category", "complexity", "summary", "source"):
        _say(f"{key:11}{found[key]}")
    _say(f"{'sites':11}{', '.join(sorted(blueprint.kinds))}")
    if blueprint.definition:
        _say(json.dumps(json.loads(blueprint.definition)["layers"], indent=1))
    _print([_shown(kernel) for kernel in kernels])
    _print([_gained(outcome) for outcome in outcomes])
    return 0


def export(name: str, url: str | None, out: Path | None) -> int:
    """Write a declared blueprint's definition to a file, or print it; returns the exit code.

    Raises:
        ConfigError: it is built in, or the file is there already.
    """
    with maybe_library(url) as store:
        blueprint = find(name, store)
    if blueprint.definition is None:
        raise ConfigError(f"{name!r} is built in, written in Python; only declared blueprints are exported")
    content = json.dumps(json.loads(blueprint.definition), indent=1)
    if out is None:
        _say(content)
        return 0
    if out.exists():
        raise ConfigError(f"{out} is there already; choose another file with --out, or remove it")
    write_atomically(out, content + "\n")
    return 0


def add(files: Sequence[Path], url: str | None) -> int:
    """Bring definitions into the library, which is made if need be; returns the exit code.

    Raises:
        ConfigError, StoreError: a definition cannot be used; those before it are in.
    """
    with open_library(url, create=True) as store:
        for file in files:
            try:
                with file.open("rb") as opened:
                    content = opened.read(MAX_BYTES + 1)
            except OSError as error:
                raise ConfigError(f"{file}: cannot be read ({error.strerror}); give a definition in JSON") from None
            _say(store.add(content, where=str(file)).blueprint_id)
    return 0


def record(run_dirs: Sequence[Path], url: str | None) -> int:
    """Tell the library what the modules of finished runs gained; returns the exit code.

    Raises:
        RunError: a folder holds no run.
    """
    found = [folder for path in run_dirs for folder in run_folders(path)]
    if not found:
        raise RunError(f"no journal.jsonl in {', '.join(map(str, run_dirs))}; name folders of runs")
    with open_library(url, create=True) as store:
        for run_dir in found:
            outcomes = read_outcomes(run_dir)
            store.record(outcomes)
            _say(f"{run_dir}: {len(outcomes)} judged modules")
    return 0


@contextlib.contextmanager
def maybe_library(url: str | None) -> Iterator[Store | None]:
    """The library, or None where none was named and none is there: what is built in needs none."""
    if url is None and not (OUTPUTS / "urza.db").exists():
        yield None
        return
    with open_library(url) as store:
        yield store


def _all(url: str | None) -> tuple[list[Blueprint], list[KernelRecord], list[Outcome]]:
    with maybe_library(url) as store:
        built_in = list(catalogue.CATALOGUE.values())
        if store is None:
            return built_in, [], []
        return [*built_in, *store.blueprints()], store.kernels(), store.outcomes()


def find(name: str, store: Store | None) -> Blueprint:
    """A blueprint by its name, built in or of the library.

    Raises:
        EsperError: there is none.
    """
    return catalogue.get(name) if name in catalogue.CATALOGUE or store is None else store.get(name)


def _shown(kernel: KernelRecord) -> dict[str, Any]:
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


def _gained(outcome: Outcome) -> dict[str, Any]:
    return {
        "run": f"{outcome.experiment_name}/{outcome.run_name}",
        "site": outcome.site,
        "gain": outcome.gain,
        "lower bound": outcome.lower_bound,
        "kept": outcome.kept,
        "added MACs": outcome.added_macs,
        "cost MACs": outcome.cost_macs,
    }


def _print(rows: Sequence[dict[str, Any]]) -> None:
    """A table; columns in which nothing stands are left out."""
    names = [name for name in (rows[0] if rows else ()) if any(row[name] not in (None, "") for row in rows)]
    if not names:
        return
    table = Table(*names, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(_written(row[name]) for name in names))
    Console(width=None if sys.stdout.isatty() else 240).print(table)


def _written(value: Any) -> str:
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


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
