"""Images, or tokens, per second of Esper, end to end, compared with its bare step and with common training loops.

All run in one process, on the same data; each round measures each contender once. Esper is measured over whole epochs
of its trainer, with augmentation, metrics, validation, checkpoints, journal and tracker. The bare step only replays
that trainer's captured step. The peers (`peers.py`) only train, without validation and checkpoints; all are measured
once, the two fastest, compiled and not, in every round. `default` is `morphogenetic=heuristic` with a health threshold
that no site reaches: sites are scored and Tamiyo is consulted every epoch as usual, and nothing grows.

    pip install .[peers]
    python benchmarks/throughput.py --out throughput.json [--data FOLDER]
    python benchmarks/throughput.py --out gpt.json --model gpt --batch-sizes 128 --rounds 3 --budget-seconds 200

Contenders that fail, whose package is missing, or that the budget leaves no time for, are reported with the reason. The
file is written after each measurement.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.esper_run import EXPERIMENT, EsperRun, Rates, configuration
from benchmarks.peer_tasks import Task, TextTask, task_of
from benchmarks.peers import PEERS, Measure, ceiling, peers_of
from benchmarks.places import image_folder, new_file
from benchmarks.throughput_report import BARE, DEFAULT, OFF, Record, Row
from esper.build import select_device
from esper.data import DataSplits, load_splits
from esper.data.sources import synthetic

PARTS = ("esper", "default", "bare", "peers", "ceiling")
CEILING = "PyTorch, reduce-overhead, data on the device"
KEPT_PEERS = 2
"""Number of fastest peers, compiled and not, in every round; Esper is compared with the fastest of each round."""
_PAUSE_S = 0.2
"""Pause before each measurement, for what the previous one still runs (a loader's workers, a checkpoint)."""

Plan = list[tuple[str, int, bool]]
"""(part, batch size, compiled) in order of measurement."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A training to measure.

    Attributes:
        open: builds and warms it up; returns a function that measures it for a number of seconds.
        close: releases it; safe to call before `open`.
    """

    row: Row
    open: Callable[[], Callable[[float], Rates]]
    close: Callable[[], None] = lambda: None


def main(arguments: list[str] | None = None) -> None:
    """Measure the requested parts, print the tables, write the JSON file."""
    options = _options().parse_args(arguments)
    deadline = time.monotonic() + options.budget_seconds
    record = Record(options)
    with contextlib.ExitStack() as stack:
        # Make the images once, not for each training.
        stack.enter_context(mock.patch.object(synthetic, "make_synthetic", functools.cache(synthetic.make_synthetic)))
        runs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="throughput-")))
        config = configuration(options, batch_size=1, is_compiled=False, grows=False)
        splits = load_splits(config.dataset, rng_seed=config.rng_seed, cache_dir=runs / "cache")
        for plan in _plans(options):
            contenders = list(_contenders(plan, options, runs=runs, splits=splits))
            record.rows += [contender.row for contender in contenders]
            _measure(contenders, options, deadline=deadline, record=record)
    record.write()
    print(record.report())


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=new_file, required=True, help="JSON file for the results")
    parser.add_argument("--data", type=image_folder, help="DATA/train/CLASS/*, DATA/test/CLASS/* (default: synthetic)")
    parser.add_argument("--images", type=int, default=50_000, help="number of synthetic images")
    parser.add_argument("--image-size", type=int, default=32, help="size of synthetic images")
    parser.add_argument("--model", default="resnet18", help="also gpt, of Python's standard library, and vit")
    parser.add_argument("--width", type=int, default=256, help="gpt")
    parser.add_argument("--depth", type=int, default=8, help="gpt")
    parser.add_argument("--context", type=int, default=256, help="gpt")
    parser.add_argument("--epoch-windows", type=int, default=16_384, help="gpt: windows in an epoch of Esper")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--parts", type=_some_of(PARTS), default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--peers", type=_some_of(PEERS), default=list(PEERS), help=f"some of {','.join(PEERS)}")
    parser.add_argument(
        "--batch-sizes",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[128, 512, 1024],
        help="peers share Esper's rounds only at the first",
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1.0, help="minimum length of a measurement")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="also measure compiled")
    parser.add_argument("--workers", type=int, default=_num_cores(), help="processes of each peer's loader")
    parser.add_argument("--tracking", default=None, choices=("mlflow", "none"), help="default: mlflow if installed")
    parser.add_argument("--budget-seconds", type=float, default=240.0, help="start nothing new after this time")
    return parser


def _num_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    def chosen(text: str) -> list[str]:
        if unknown := [name for name in text.split(",") if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r}: allowed are {', '.join(known)}")
        return text.split(",")

    return chosen


def _plans(options: argparse.Namespace) -> list[Plan]:
    """Groups that share rounds, the headline results first."""
    first, *others = options.batch_sizes
    ours = ("esper", "default", "bare")
    plans: list[Plan] = [
        [
            *((part, first, False) for part in (*ours, "peers")),
            *((part, first, True) for part in ("peers", *ours)),
        ],
        *([(part, batch_size, False) for part in ours] for batch_size in others),
        [("ceiling", first, True)],
        *([(part, batch_size, True) for part in ours] for batch_size in others),
        *([("ceiling", batch_size, True)] for batch_size in others),
        *([("peers", batch_size, False), ("peers", batch_size, True)] for batch_size in others),
    ]
    selected = [
        [step for step in plan if step[0] in options.parts and (options.compile or not step[2])] for plan in plans
    ]
    return [plan for plan in selected if plan]


def _contenders(plan: Plan, options: argparse.Namespace, *, runs: Path, splits: DataSplits) -> Iterator[Contender]:
    @functools.cache
    def run(batch_size: int, is_compiled: bool, grows: bool) -> EsperRun:
        config = configuration(options, batch_size=batch_size, is_compiled=is_compiled, grows=grows)
        name = f"{'default' if grows else 'off'}-{batch_size}-{'compiled' if is_compiled else 'eager'}"
        return EsperRun(config, run_dir=runs / EXPERIMENT / name)

    for part, batch_size, is_compiled in plan:
        row = functools.partial(Row, part=part, batch_size=batch_size, is_compiled=is_compiled)
        off, default = (run(batch_size, is_compiled, grows) for grows in (False, True))
        if part == "esper":
            yield Contender(row=row(name=OFF), open=_opener(off, off.epochs), close=off.close)
        elif part == "default":
            yield Contender(row=row(name=DEFAULT), open=_opener(default, default.epochs), close=default.close)
        elif part == "bare":
            yield Contender(row=row(name=BARE), open=_opener(off, off.steps), close=off.close)
        else:
            task = task_of(
                splits,
                config=configuration(options, batch_size=batch_size, is_compiled=is_compiled, grows=False),
                device=select_device(options.device),
                num_workers=options.workers,
                is_compiled=is_compiled,
            )
            if part == "ceiling" and isinstance(task, TextTask):
                continue  # its loader is for images
            chosen = [name for name in peers_of(task) if name in options.peers]
            loops = {name: PEERS[name] for name in chosen} if part == "peers" else {CEILING: ceiling}
            for name, loop in loops.items():
                yield Contender(row=row(name=name), open=functools.partial(_open_peer, loop, task))


def _opener(run: EsperRun, measure: Callable[[float], Rates]) -> Callable[[], Callable[[float], Rates]]:
    def opened() -> Callable[[float], Rates]:
        run.open()
        return measure

    return opened


def _open_peer(loop: Callable[[Task], Measure], task: Task) -> Callable[[float], Rates]:
    measure = loop(task)

    def tuned(seconds: float) -> Rates:
        # These are global settings, and Esper's differ.
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
            return Rates(measure(seconds))

    tuned(0.0)  # compiles
    return tuned


def _measure(contenders: list[Contender], options: argparse.Namespace, *, deadline: float, record: Record) -> None:
    """Open all, find the fastest peers, then measure all open ones in each round, in alternating order."""
    measures: dict[int, Callable[[float], Rates]] = {}

    def add(round_number: int, number: int) -> None:
        time.sleep(_PAUSE_S)
        contenders[number].row.add(round_number, measures[number](options.seconds))

    with contextlib.ExitStack() as stack:
        for number, contender in enumerate(contenders):
            row = contender.row
            if time.monotonic() > deadline:
                row.failed = f"not run: the {options.budget_seconds:g} s of --budget-seconds were used up"
                continue
            with _reported(row):
                started = time.perf_counter()
                stack.callback(_close, contender)
                measures[number] = contender.open()
                row.ready_s = time.perf_counter() - started
                if row.part == "peers":
                    add(0, number)
            _drop(measures, _slow_peers(contenders, measures) | ({number} if row.failed else set()))
            record.write()
        for round_number in range(1, options.rounds + 1):
            if round_number > 1 and time.monotonic() > deadline:
                break
            for number in sorted(measures, reverse=round_number % 2 == 0):
                with _reported(contenders[number].row):
                    add(round_number, number)
                if contenders[number].row.failed:
                    _drop(measures, {number})
                record.write()
    _drop(measures, set(measures))
    if any(contender.row.is_compiled for contender in contenders):
        torch.compiler.reset()


def _close(contender: Contender) -> None:
    with _reported(contender.row):
        contender.close()


def _slow_peers(contenders: list[Contender], numbers: Iterable[int]) -> set[int]:
    """Of the peers that only the selecting round has measured, compiled and not, all but the fastest."""
    rows = {number: contenders[number].row for number in numbers}
    slow = set[int]()
    for is_compiled in (False, True):
        peers = [n for n, row in rows.items() if row.rates.keys() == {0} and row.is_compiled == is_compiled]
        slow |= set(sorted(peers, key=lambda number: rows[number].rates[0])[:-KEPT_PEERS])
    return slow


def _drop(measures: dict[int, Callable[[float], Rates]], numbers: set[int]) -> None:
    if dropped := [measures.pop(number) for number in numbers & measures.keys()]:
        dropped.clear()
        gc.collect()  # ends workers of loaders and frees device memory
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _reported(row: Row) -> Iterator[None]:
    """Record an exception as the row's failure and continue."""
    try:
        yield
    except Exception as error:
        kind = "skipped" if isinstance(error, ModuleNotFoundError) else "failed"
        row.failed = f"{kind}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"


if __name__ == "__main__":
    main()
