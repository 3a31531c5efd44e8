"""How fast does Esper train, end to end, beside its own bare step and the loops that people use? Images per second.

All in one process, on the same images, in turns: in every round each contender is measured once. Esper is measured by
whole epochs of its own trainer, with augmentation, metrics, validation, checkpoints, journal and tracker; the bare step
is that trainer's captured step, replayed and nothing else; the peers (`peers.py`) are measured in training alone, with
no validation and no checkpoints: all once, the two fastest in every round. `default` is `morphogenetic=default` with a
threshold that no site can reach: Tamiyo measures and is asked every epoch as always, and nothing ever grows.

    pip install .[peers]
    python benchmarks/throughput.py --out throughput.json [--data FOLDER]

What fails is reported with its reason, and so is what there was no time for. The file is written after every
measurement.
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
from benchmarks.peers import PEERS, Measure, Task, ceiling
from benchmarks.throughput_report import BARE, DEFAULT, OFF, Record, Row
from esper.build import select_device
from esper.data import DataSplits, load_splits
from esper.data.sources import synthetic

PARTS = ("esper", "bare", "peers", "ceiling")
CEILING = "PyTorch, reduce-overhead, data on the device"
KEPT_PEERS = 2
"""The fastest peers are measured in every round, and the faster of them in a round is what Esper is compared with."""
_SETTLING_S = 0.2
"""Before every measurement: what the one before left running ends (a loader's workers, the saving of a checkpoint)."""

Plan = list[tuple[str, int, bool]]
"""(Part, batch size, compiled) in the order of measuring."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something to be measured.

    Attributes:
        open: builds it and runs it until it is warm; returns what measures it for so many seconds.
        close: releases it; safe to call when it was not opened.
    """

    row: Row
    open: Callable[[], Callable[[float], Rates]]
    close: Callable[[], None] = lambda: None


def main(arguments: list[str] | None = None) -> None:
    """Measure what was asked for, print the tables, write the JSON file."""
    options = _options().parse_args(arguments)
    deadline = time.monotonic() + options.budget_seconds
    record = Record(options)
    with contextlib.ExitStack() as stack:
        # Made once, not for each of the trainings.
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
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--data", help="images: DATA/train/CLASS/*, DATA/test/CLASS/*; else made up")
    parser.add_argument("--images", type=int, default=50_000, help="images, where they are made up")
    parser.add_argument("--image-size", type=int, default=32, help="their side, where they are made up")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--parts", type=_some_of(PARTS), default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--peers", type=_some_of(PEERS), default=list(PEERS), help=f"some of {','.join(PEERS)}")
    parser.add_argument(
        "--batch-sizes",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[128, 512, 1024],
        help="peers meet Esper in the same rounds at the first",
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1.0, help="least length of one measurement")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="also compiled")
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
    """What is measured together, the claims first."""
    first, *others = options.batch_sizes
    ours = ("esper", "bare")
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
    wanted = [
        [step for step in plan if step[0] in options.parts and (options.compile or not step[2])] for plan in plans
    ]
    return [plan for plan in wanted if plan]


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
            yield Contender(row=row(name=DEFAULT), open=_opener(default, default.epochs), close=default.close)
        elif part == "bare":
            yield Contender(row=row(name=BARE), open=_opener(off, off.steps), close=off.close)
        else:
            task = Task(
                config=configuration(options, batch_size=batch_size, is_compiled=is_compiled, grows=False),
                splits=splits,
                device=select_device(options.device),
                num_workers=options.workers,
                is_compiled=is_compiled,
            )
            loops = {name: PEERS[name] for name in options.peers} if part == "peers" else {CEILING: ceiling}
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
        # Esper's settings are others: they are the process's.
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
            return Rates(measure(seconds))

    tuned(0.0)  # compiles
    return tuned


def _measure(contenders: list[Contender], options: argparse.Namespace, *, deadline: float, record: Record) -> None:
    """Open all, find the fastest peers, then measure what is open in every round, forwards and backwards in turn."""
    measures: dict[int, Callable[[float], Rates]] = {}

    def add(round_number: int, number: int) -> None:
        time.sleep(_SETTLING_S)
        contenders[number].row.add(round_number, measures[number](options.seconds))

    with contextlib.ExitStack() as stack:
        for number, contender in enumerate(contenders):
            row = contender.row
            if time.monotonic() > deadline:
                row.failed = f"not run: the {options.budget_seconds:g} s of --budget-seconds were over"
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
    peers = [number for number in numbers if contenders[number].row.images_per_s.keys() == {0}]
    return set(sorted(peers, key=lambda number: contenders[number].row.images_per_s[0])[:-KEPT_PEERS])


def _drop(measures: dict[int, Callable[[float], Rates]], numbers: set[int]) -> None:
    if dropped := [measures.pop(number) for number in numbers & measures.keys()]:
        dropped.clear()
        gc.collect()  # loaders end their workers, and networks leave the device
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _reported(row: Row) -> Iterator[None]:
    """One that fails is reported with its reason, and the rest goes on."""
    try:
        yield
    except Exception as error:
        row.failed = f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"


if __name__ == "__main__":
    main()
