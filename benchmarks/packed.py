"""How long do several runs take that share a GPU in one process (`hydra/launcher=packed`)?

The same sweep over seeds is trained by `esper.sweep.job` (one run), by `esper.sweep.pack` (all in one process), and by
as many processes at once, with MPS if it is installed. Rates come from the journals: steps of all runs between the time
when the last of them was under way and the time when the first ended, validation and checkpoints included. The ratio is
the time of all runs as a multiple of that of one. Memory is what nvidia-smi shows, at its peak.

Variants tell what limits the launcher: threads that replay their graphs at any time (`free`), turns of a single step
instead of 8, runs whose epochs end together (`in step`), CUDA's own number of queues to the device instead of 32 (`8
queues`), and steps that do nothing (`empty steps`), which leaves what they cost Python. `replays` is what the GPU can
do (`replays.py`). The run alone and the packed ones of each model come first. Runs that the budget ends early still
have a rate.

    python benchmarks/packed.py --out packed.json [--runs 12] [--models resnet_small resnet18] [--budget-seconds 200]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import replays
from benchmarks.gpu_sharing import PeakMemory, mps
from benchmarks.measuring import environment, table, verdict, write_json
from esper.configs import (
    DatasetConfig,
    LoggingConfig,
    ModelConfig,
    MorphogeneticConfig,
    OptimizationConfig,
    TolariaConfig,
    TrackingConfig,
)
from esper.errors import RunError
from esper.sweep.manifest import Member, freeze

ROOT = Path(__file__).resolve().parent.parent
GOALS = {"resnet_small": 4.0, "resnet18": 9.0}
"""Largest ratio for 12 runs, on one H100."""
EPOCHS = {"resnet_small": 6, "resnet18": 3}
"""A few seconds of one run there."""
WAYS = ("packed", "replays", "in step", "free", "processes", "8 queues", "empty steps", "turns of 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One way to train the runs.

    Attributes:
        model, way: which.
        num_runs: how many.
        images_per_s: of all runs together while all were under way.
        training_s: from the first run's start to the last one's end; of `replays` what is timed.
        command_s: of the whole command, imports and all.
        cpu_s: time of CPU cores for it; on CUDA with that of one nvidia-smi a second, for the memory.
        memory_gb: GPU memory in use at most, less what was in use before.
        digest: of the weights of the first run; None: the budget ended the runs, or they were only replayed.
    """

    model: str
    way: str
    num_runs: int
    images_per_s: float
    training_s: float
    command_s: float
    cpu_s: float
    memory_gb: float
    digest: str | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON file; returns 1 if a part failed."""
    options = _options().parse_args(arguments)
    if options.child:
        _child(options.child, options.folders)
        return 0
    deadline = time.monotonic() + options.budget_seconds
    first = [(model, way) for model in options.models for way in ("alone", *options.ways[:1])]
    rest = [(model, way) for way in options.ways[1:] for model in options.models]
    cells, failed = list[Cell](), False
    with tempfile.TemporaryDirectory(prefix="packed-") as folder, mps(Path(folder)) as mps_variables:
        for model, way in first + rest:
            left_s = deadline - time.monotonic()
            is_late = left_s < max((cell.command_s for cell in cells if cell.model == model), default=10.0)
            lacks = "time left" if is_late else None
            if way == "processes" and mps_variables is None and not options.without_mps:
                lacks = "MPS here"
            elif way == "replays" and options.device == "cpu":
                lacks = "CUDA graphs on a CPU"
            if lacks:
                print(f"{model}, {way}: left out (no {lacks})", flush=True)
                continue
            own = Path(folder) / f"{model}-{way.replace(' ', '-')}"
            try:
                cells.append(_measure(model, way, options, own, mps_variables, left_s))
                _report(cells, options, mps_variables is not None)
            except Exception as error:
                failed = True
                told = error if isinstance(error, RunError) else f"\n{traceback.format_exc()}"
                print(f"{model}, {way}: FAILED: {told}", flush=True)
    print(environment(), flush=True)
    for model in options.models:
        ratio = _ratios(cells).get((model, "packed")) if options.runs == 12 else None
        met = None if ratio is None else ratio <= GOALS[model]
        print(verdict(f"12 runs of {model} in at most {GOALS[model]:g} times the time of one", met), flush=True)
    return int(failed)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("packed.json"), help="JSON file for the results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--models", nargs="+", default=[*GOALS], choices=tuple(GOALS))
    parser.add_argument("--depths", type=int, nargs="+", default=[3, 3, 3], help="of resnet_small: 3 3 3 is ResNet-20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, help="6 of resnet_small and 3 of resnet18 if not given")
    parser.add_argument("--ways", nargs="*", default=[*WAYS], choices=WAYS)
    parser.add_argument("--without-mps", action="store_true", help="also measure processes where there is no MPS")
    parser.add_argument("--budget-seconds", type=float, default=200.0, help="start and run no part beyond this time")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("folders", nargs="*", help=argparse.SUPPRESS)
    return parser


def _config(model: str, options: argparse.Namespace, *, rng_seed: int) -> TolariaConfig:
    is_small = model == "resnet_small"
    return TolariaConfig(
        model=ModelConfig(name=model, depths=options.depths) if is_small else ModelConfig(name=model),
        dataset=DatasetConfig(
            name="synthetic",
            image_size=options.image_size,
            num_examples=options.images,
            batch_size=options.batch_size,
        ),
        optimization=OptimizationConfig(max_epochs=options.epochs or EPOCHS[model]),
        morphogenetic=MorphogeneticConfig(enable_tamiyo=False),
        logging=LoggingConfig(log_interval=20, report_images=False),
        tracking=TrackingConfig(name="none"),
        experiment_name="packed",
        device=options.device,
        rng_seed=rng_seed,
    )


def _measure(
    model: str, way: str, options: argparse.Namespace, folder: Path, mps_variables: dict[str, str] | None, left_s: float
) -> Cell:
    """Train in one way.

    Raises:
        RunError: a run has failed; its output was printed. Or the runs are too short.
    """
    folder.mkdir()
    num_runs = 1 if way == "alone" else options.runs
    members = []
    for seed in range(num_runs):
        name = f"seed-{seed}"
        one = Member(sweep_dir=folder, name=name, overrides=(name,), cwd=str(folder), siblings={})
        freeze(one, _config(model, options, rng_seed=seed))
        members.append(one)
    folders = [str(one.folder) for one in members]
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]  # an empty entry would be the folder of the run
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "CUDA_DEVICE_MAX_CONNECTIONS": "8" if way == "8 queues" else "32",  # as `esper.sweep.pack` does
    }
    if way in ("alone", "processes"):
        commands = [[sys.executable, "-m", "esper.sweep.job", one] for one in folders]
        if way == "processes":
            environment |= {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_runs)), **(mps_variables or {})}
    elif way in ("packed", "8 queues"):
        commands = [[sys.executable, "-m", "esper.sweep.pack", str(num_runs), *folders]]
    else:
        commands = [[sys.executable, str(Path(__file__).resolve()), "--child", way, "--", *folders]]
    started, cpu_s = time.monotonic(), _children_cpu_s()
    with PeakMemory() as memory:
        is_complete = _run(commands, members, environment, timeout_s=left_s)
    command_s, cpu_s = time.monotonic() - started, _children_cpu_s() - cpu_s
    cell = functools.partial(
        Cell, model=model, way=way, num_runs=num_runs, command_s=command_s, cpu_s=cpu_s, memory_gb=memory.peak_gb
    )
    if way == "replays":
        seconds = replays.printed_seconds(members[0].folder / "job.log")
        num_images = options.batch_size * replays.NUM_STEPS * num_runs
        return cell(images_per_s=num_images / seconds, training_s=seconds, digest=None)
    unfinished = [one for one in members if one.outcome().get("status") != "finished"]
    was_ended = not is_complete and not any(one.outcome().get("status") == "failed" for one in unfinished)
    if unfinished and not (was_ended and all((one.run_dir / "journal.jsonl").exists() for one in members)):
        _show(members)
        raise RunError(f"not finished: {', '.join(one.name for one in unfinished)}")
    journals = [_journal(one) for one in members]
    times = [event["time_unix_s"] for events in journals for event in events]
    return cell(
        images_per_s=options.batch_size * _steps_per_second(journals),
        training_s=max(times) - min(times),
        digest=None if unfinished else _digest(members[0]),
    )


def _run(commands: list[list[str]], members: Sequence[Member], env: dict[str, str], *, timeout_s: float) -> bool:
    """Run commands at the same time; those that take too long are ended. Returns whether none was."""
    logs = [one.folder / "job.log" for one in members][: len(commands)]
    processes = []
    for command, path in zip(commands, logs, strict=True):
        with path.open("wb") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env, cwd=path.parent))
    until, is_complete = time.monotonic() + timeout_s, True
    for process in processes:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            is_complete = False
            print(f"ended after {timeout_s:.0f} s: {process.args!s:.200}", flush=True)
            process.send_signal(signal.SIGABRT)  # prints the stacks of its threads
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
    return is_complete


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _show(members: Sequence[Member]) -> None:
    """Print what runs that have not finished have printed."""
    for one in [one for one in members if one.outcome().get("status") != "finished"][:2]:
        print(f"----- {one.name}: {one.outcome()}")
        for log in dict.fromkeys((members[0].folder / "job.log", one.folder / "job.log", one.folder / "pack.log")):
            if log.exists():
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}", flush=True)


def _journal(one: Member) -> list[dict[str, Any]]:
    lines = (one.run_dir / "journal.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be a part of one


def _steps_per_second(journals: Sequence[Sequence[dict[str, Any]]]) -> float:
    """Steps of all runs in a second, while all of them were under way.

    Raises:
        RunError: they are too short for that.
    """
    points = [[(e["time_unix_s"], e["step"]) for e in events if e["kind"] == "step"] for events in journals]
    if min(map(len, points)) > 1:
        first, last = max(run[1][0] for run in points), min(run[-1][0] for run in points)
        if first < last:
            return sum(_steps_at(run, last) - _steps_at(run, first) for run in points) / (last - first)
    raise RunError(
        "the runs are too short: at no time were all of them under way; use more --epochs, --images or "
        "--budget-seconds, or a smaller --batch-size"
    )


def _steps_at(points: Sequence[tuple[float, int]], time_s: float) -> float:
    for (t0, s0), (t1, s1) in itertools.pairwise(points):
        if t0 <= time_s <= t1:
            return s0 + (s1 - s0) * (time_s - t0) / max(1e-9, t1 - t0)
    return points[-1][1] if time_s > points[-1][0] else points[0][1]


def _digest(one: Member) -> str:
    checkpoints = sorted((one.run_dir / "checkpoints").glob("step-*"), key=lambda path: path.stat().st_mtime)
    return hashlib.sha256((checkpoints[-1] / "model.safetensors").read_bytes()).hexdigest()[:16]


def _child(way: str, folders: Sequence[str]) -> None:
    """Run members as `esper.sweep.pack` does, but for the variant."""
    if way == "replays":
        replays.print_seconds([Member.read(Path(folder)) for folder in folders])
        return
    from esper import turns
    from esper.sweep.pack import PackJob
    from esper.tolaria.cuda_graph import CapturedFunction
    from esper.tolaria.step import TrainStep

    if way == "free":
        in_turn = CapturedFunction.run

        def run(self: CapturedFunction, function: Any) -> None:
            if self._graph is None:
                in_turn(self, function)
            else:
                with turns.paused():
                    self._graph.replay()

        CapturedFunction.run = run  # type: ignore[method-assign]
    elif way == "empty steps":
        TrainStep._step = lambda self: self._position.add_(self._advance)  # type: ignore[method-assign]
    elif way == "in step":
        turns.APART = 0
    else:
        turns.STEPS = int(way.removeprefix("turns of "))
    PackJob([Path(folder) for folder in folders], at_once=len(folders))()


def _ratios(cells: Sequence[Cell]) -> dict[tuple[str, str], float]:
    """Time of all runs as a multiple of that of one, by model and way, as far as the latter was measured."""
    one = {cell.model: cell.images_per_s for cell in cells if cell.way == "alone"}
    return {(c.model, c.way): c.num_runs * one[c.model] / c.images_per_s for c in cells if c.model in one}


def _report(cells: Sequence[Cell], options: argparse.Namespace, has_mps: bool) -> None:
    """Print the cells so far, and write them."""
    ratios, alone = _ratios(cells), {cell.model: cell for cell in cells if cell.way == "alone"}
    rows = []
    for cell in cells:
        one, ratio = alone.get(cell.model), ratios.get((cell.model, cell.way))
        is_known = one is not None and None not in (one.digest, cell.digest) and cell.way != "empty steps"
        rows.append(
            {
                "model": cell.model,
                "way": cell.way + (" (MPS)" if cell.way == "processes" and has_mps else ""),
                "runs": cell.num_runs,
                "images/s": f"{cell.images_per_s:,.0f}",
                "time of all : one": None if ratio is None else f"{ratio:.2f}",
                "start to end : one": f"{cell.training_s / one.training_s:.2f}" if one and cell.digest else None,
                "training, s": f"{cell.training_s:.1f}",
                "command, s": f"{cell.command_s:.1f}",
                "CPU, s": f"{cell.cpu_s:.1f}",
                "GPU memory, GB": f"{cell.memory_gb:.1f}",
                "seed 0 as alone": ("yes" if one and cell.digest == one.digest else "NO") if is_known else None,
            }
        )
    print(table(rows), flush=True)
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "child", "folders")}
    listed = [{"model": model, "way": way, "ratio": ratio} for (model, way), ratio in ratios.items()]
    write_json(options.out, {"options": settings, "cells": cells, "ratios": listed, "has_mps": has_mps})


if __name__ == "__main__":
    raise SystemExit(main())
