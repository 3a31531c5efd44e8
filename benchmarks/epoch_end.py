"""What the end of an epoch costs, end to end: `morphogenetic=default`, its seeds dormant, against `off`.

Two trainings in one process alternate in blocks of whole epochs, in ABBA order, with validation, checkpoints and
journal. `bare` is the captured step of one of them and nothing else. Where the time goes: seconds that the host spends
in each part of an epoch's end; the rest of an epoch is its steps. Part of `overhead.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.esper_run import EsperRun
from benchmarks.measuring import Ratio, paired_ratio
from esper.configs import TolariaConfig
from esper.configs.compose import compose
from esper.configs.load import from_hydra
from esper.tolaria import loop
from esper.tolaria.evaluate import Evaluation
from esper.tolaria.growth.consult import Growth
from esper.tolaria.run import Run
from esper.tracking import Journal

__all__ = ["PARTS", "epoch_ends"]

PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "wait for the last checkpoint": ((loop, "finish_saving"),),
    "read the training's figures": ((loop, "require_finite"),),
    "begin the validation": ((Run, "begin_validation"),),
    "read its figures": ((Evaluation, "figures"),),
    "begin checkpoints": ((loop, "start_saving"),),
    "consult Tamiyo": ((Growth, "end_of_epoch"),),
    "journal, all events": ((Journal, "write"),),
}
"""Parts of an epoch's end, and the functions that do them."""


def epoch_ends(options: argparse.Namespace, *, device: str, folder: Path, deadline_s: float) -> list[dict[str, Any]]:
    """Rows of the table, one for each batch size that there is time for."""
    rows = []
    for batch_size, is_compiled in options.epoch_cells[device]:
        if time.monotonic() < deadline_s:
            where = f"{device}, batch {batch_size}{', compiled' if is_compiled else ''}"
            rows += _cell(options, device=device, batch_size=batch_size, is_compiled=is_compiled, where=where,
                          folder=folder / f"{device}-{batch_size}", deadline_s=deadline_s)  # fmt: skip
    return rows


def _cell(
    options: argparse.Namespace,
    *,
    device: str,
    batch_size: int,
    is_compiled: bool,
    where: str,
    folder: Path,
    deadline_s: float,
) -> list[dict[str, Any]]:
    names = ("off", "default")[int(is_compiled) :]  # compiling takes a minute: once, and only `bare` to compare with
    with contextlib.ExitStack() as stack:
        runs = {}
        for name in names:
            config = _config(
                options.epoch_settings[device], name, device=device, batch_size=batch_size, is_compiled=is_compiled
            )
            runs[name] = EsperRun(config, run_dir=folder / name)
            stack.callback(runs[name].close)
            runs[name].open()
        seconds: dict[str, list[float]] = {name: [] for name in (*names, "bare")}
        spent: dict[str, list[float]] = defaultdict(list)
        for pair in range(options.epoch_pairs):
            if pair and time.monotonic() > deadline_s:
                break
            for name in sorted((*names, "bare"), reverse=pair % 2 == 0):
                seconds[name].append(_epoch_s(runs, name, options.epoch_seconds, spent))
    rows = [_row("default / bare, end to end", where, seconds, "bare")]
    if "off" in names:
        rows.insert(0, _row("dormant default / off, end to end", where, seconds, "off"))
    return [row | {"end_s": {part: statistics.median(values) for part, values in spent.items()}} for row in rows]


def _row(what: str, where: str, seconds: dict[str, list[float]], base: str) -> dict[str, Any]:
    speed: Ratio = paired_ratio(seconds[base], seconds["default"])
    return {"what": what, "where": where, "seconds": {base: seconds[base], "default": seconds["default"]},
            "speed": speed, "goal": 0.97 if base == "off" else 0.95}  # fmt: skip


def _epoch_s(runs: dict[str, EsperRun], name: str, at_least_s: float, spent: dict[str, list[float]]) -> float:
    """Seconds of an epoch, or of its steps alone; adds what the parts of its end took to `spent`."""
    if name == "bare":
        run = runs["default"]
        return run.images_per_epoch / run.steps(at_least_s).rate
    with _timed() as totals:
        rate, num_epochs = runs[name].epochs(at_least_s).rate, totals["epochs"]
    if name == "default":
        for part in PARTS:
            spent[part].append(totals[part] / num_epochs)
    return runs[name].images_per_epoch / rate


def _config(
    settings: list[str], morphogenetic: str, *, device: str, batch_size: int, is_compiled: bool
) -> TolariaConfig:
    overrides = [
        *("dataset=synthetic", f"dataset.batch_size={batch_size}", f"morphogenetic={morphogenetic}"),
        *(f"device={device}", f"compile_model={str(is_compiled).lower()}", "tracking=none"),
        *("optimization.max_epochs=10000", "optimization.learning_rate=0.01", *settings),
    ]
    return from_hydra(compose(overrides))


@contextlib.contextmanager
def _timed() -> Iterator[dict[str, float]]:
    """Context manager: seconds that the host spends in each part, and the number of epochs."""
    totals: dict[str, float] = defaultdict(float)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                totals[part] += time.perf_counter() - started
                totals["epochs"] += part == "consult Tamiyo"

        return call

    saved = [(part, owner, name, getattr(owner, name)) for part, all_ in PARTS.items() for owner, name in all_]
    try:
        for part, owner, name, function in saved:
            setattr(owner, name, timed(part, function))
        yield totals
    finally:
        for _, owner, name, function in saved:
            setattr(owner, name, function)
