"""How long do several runs take that share a GPU in one process (`hydra/launcher=packed`)?

The same sweep over seeds is trained by `esper.sweep.job` (one run), by `esper.sweep.pack` (all in one process), and by
as many processes at once, with MPS if it is installed. Rates come from the journals: steps of all runs between the time
when the last of them was under way and the time when the first ended, validation and checkpoints included. The ratio is
the time of all runs as a multiple of that of one. Memory is what nvidia-smi shows, at its peak.

Threads that replay their graphs at any time (`free`) and turns of a single step (`turns of 1`) are variants of turns of
8 steps, which the launcher takes.

    python benchmarks/packed.py --out packed.json [--runs 12] [--model resnet_small|resnet18] [--epochs 10]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One way to train the runs.

    Attributes:
        way: which.
        num_runs: how many finished.
        images_per_s: of all runs together while all were under way.
        training_s: from the first run's start to the last one's end.
        command_s: of the whole command, imports and all.
        memory_gb: GPU memory in use at most, less what was in use before.
        digest: of the weights of the first run.
    """

    way: str
    num_runs: int
    images_per_s: float
    training_s: float
    command_s: float
    memory_gb: float
    digest: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON file; returns 1 if a part failed."""
    options = _options().parse_args(arguments)
    if options.child:
        _child(options.child, options.folders)
        return 0
    deadline = time.monotonic() + options.budget_seconds
    cells, failed = list[Cell](), False
    with tempfile.TemporaryDirectory(prefix="packed-") as folder, _mps(Path(folder)) as mps:
        for way in ("alone", *options.ways):
            num_runs = 1 if way == "alone" else options.runs
            left_s = deadline - time.monotonic()
            is_late = left_s < max((cell.command_s for cell in cells), default=10.0)
            if is_late or (way == "processes" and mps is None and not options.without_mps):
                print(f"{way}: left out ({'no time left' if is_late else 'no MPS here'})", flush=True)
                continue
            try:
                cells.append(_measure(way, num_runs, options, Path(folder) / way.replace(" ", "-"), mps, left_s))
                print(cells[-1], flush=True)
            except RunError as error:
                failed = True
                print(f"{way}: FAILED: {error}", flush=True)
            except Exception:
                failed = True
                print(f"{way}: FAILED\n{traceback.format_exc()}", flush=True)
            _report(cells, options, mps is not None)
    return int(failed)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("packed.json"), help="JSON file for the results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--model", default="resnet_small", choices=tuple(GOALS))
    parser.add_argument("--depths", type=int, nargs="+", default=[3, 3, 3], help="of resnet_small: 3 3 3 is ResNet-20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--ways", nargs="*", default=["packed", "processes", "free", "turns of 1"])
    parser.add_argument("--without-mps", action="store_true", help="also measure processes where there is no MPS")
    parser.add_argument("--budget-seconds", type=float, default=140.0, help="start and run no part beyond this time")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("folders", nargs="*", help=argparse.SUPPRESS)
    return parser


def _config(options: argparse.Namespace, *, rng_seed: int) -> TolariaConfig:
    is_small = options.model == "resnet_small"
    return TolariaConfig(
        model=ModelConfig(name="resnet_small", depths=options.depths) if is_small else ModelConfig(name=options.model),
        dataset=DatasetConfig(
            name="synthetic",
            image_size=options.image_size,
            num_examples=options.images,
            batch_size=options.batch_size,
        ),
        optimization=OptimizationConfig(max_epochs=options.epochs),
        morphogenetic=MorphogeneticConfig(enable_tamiyo=False),
        logging=LoggingConfig(log_interval=20, report_images=False),
        tracking=TrackingConfig(name="none"),
        experiment_name="packed",
        device=options.device,
        rng_seed=rng_seed,
    )


def _measure(
    way: str, num_runs: int, options: argparse.Namespace, folder: Path, mps: dict[str, str] | None, left_s: float
) -> Cell:
    """Train in one way.

    Raises:
        RunError: a run has not finished; its output was printed. Or the runs are too short.
    """
    folder.mkdir()
    members = []
    for seed in range(num_runs):
        name = f"seed-{seed}"
        one = Member(sweep_dir=folder, name=name, overrides=(name,), cwd=str(folder), siblings={})
        freeze(one, _config(options, rng_seed=seed))
        members.append(one)
    folders = [str(one.folder) for one in members]
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]  # an empty entry would be the folder of the run
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    if way in ("alone", "processes"):
        commands = [[sys.executable, "-m", "esper.sweep.job", one] for one in folders]
        if way == "processes":
            environment |= {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_runs)), **(mps or {})}
    elif way == "packed":
        commands = [[sys.executable, "-m", "esper.sweep.pack", str(num_runs), *folders]]
    else:
        commands = [[sys.executable, str(Path(__file__).resolve()), "--child", way, "--", *folders]]
    started = time.monotonic()
    with _Memory() as memory:
        _run(commands, members, environment, timeout_s=left_s)
    command_s = time.monotonic() - started
    unfinished = [one.name for one in members if one.outcome().get("status") != "finished"]
    if unfinished:
        _show(members)
        raise RunError(f"not finished: {', '.join(unfinished)}")
    journals = [_journal(one) for one in members]
    times = [event["time_unix_s"] for events in journals for event in events]
    return Cell(
        way=way,
        num_runs=num_runs,
        images_per_s=options.batch_size * _steps_per_second(journals),
        training_s=max(times) - min(times),
        command_s=command_s,
        memory_gb=memory.peak_gb,
        digest=_digest(members[0]),
    )


def _run(commands: list[list[str]], members: Sequence[Member], env: dict[str, str], *, timeout_s: float) -> None:
    """Run commands at the same time; those that take too long are ended."""
    logs = [one.folder / "job.log" for one in members][: len(commands)]
    processes = []
    for command, path in zip(commands, logs, strict=True):
        with path.open("wb") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env, cwd=path.parent))
    until = time.monotonic() + timeout_s
    for process in processes:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            print(f"ended after {timeout_s:.0f} s: {process.args!s:.200}", flush=True)
            process.send_signal(signal.SIGABRT)  # prints the stacks of its threads
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


def _show(members: Sequence[Member]) -> None:
    """Print what runs that have not finished have printed."""
    for one in [one for one in members if one.outcome().get("status") != "finished"][:2]:
        print(f"----- {one.name}: {one.outcome()}")
        for log in dict.fromkeys((members[0].folder / "job.log", one.folder / "job.log", one.folder / "pack.log")):
            if log.exists():
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}", flush=True)


def _journal(one: Member) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (one.run_dir / "journal.jsonl").read_text().splitlines()]


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
        "the runs are too short: at no time were all of them under way; use more --epochs or --images, or a smaller "
        "--batch-size"
    )


def _steps_at(points: Sequence[tuple[float, int]], time_s: float) -> float:
    for (t0, s0), (t1, s1) in itertools.pairwise(points):
        if t0 <= time_s <= t1:
            return s0 + (s1 - s0) * (time_s - t0) / max(1e-9, t1 - t0)
    return points[-1][1] if time_s > points[-1][0] else points[0][1]


def _digest(one: Member) -> str:
    checkpoints = sorted((one.run_dir / "checkpoints").glob("step-*"), key=lambda path: path.stat().st_mtime)
    return hashlib.sha256((checkpoints[-1] / "model.safetensors").read_bytes()).hexdigest()[:16]


class _Memory:
    """Context manager: the peak of the GPU memory in use, in GB above what was in use before; 0 without a GPU."""

    def __enter__(self) -> _Memory:
        self.peak_gb, self._before, self._end = 0.0, self._used_gb(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(1.0):
            self.peak_gb = max(self.peak_gb, self._used_gb() - self._before)

    @staticmethod
    def _used_gb() -> float:
        if shutil.which("nvidia-smi") is None:
            return 0.0
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
        return float(done.stdout.split()[0]) * 2**20 / 1e9 if done.returncode == 0 and done.stdout.split() else 0.0


@contextlib.contextmanager
def _mps(folder: Path) -> Iterator[dict[str, str] | None]:
    """Context manager: an MPS server of this benchmark's own; variables for its clients, or None without one."""
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None or not torch.cuda.is_available():
        yield None
        return
    variables = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "mps"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "mps-log")}
    for path in variables.values():
        Path(path).mkdir()
    env = {**os.environ, **variables}
    started = subprocess.run([control, "-d"], env=env, check=False, capture_output=True, text=True, timeout=30)
    if started.returncode:
        print(f"MPS does not start: {started.stdout}{started.stderr}", flush=True)
        yield None
        return
    try:
        yield variables
    finally:
        subprocess.run([control], env=env, input="quit\n", check=False, capture_output=True, text=True, timeout=60)


def _child(way: str, folders: Sequence[str]) -> None:
    """Run members as `esper.sweep.pack` does, but for the variant."""
    from esper import turns
    from esper.sweep.pack import PackJob
    from esper.tolaria.cuda_graph import CapturedFunction

    if way == "free":
        in_turn = CapturedFunction.run

        def run(self: CapturedFunction, function: Any) -> None:
            if self._graph is None:
                in_turn(self, function)
            else:
                with turns.paused():
                    self._graph.replay()

        CapturedFunction.run = run  # type: ignore[method-assign]
    else:
        turns.STEPS = int(way.removeprefix("turns of "))
    PackJob([Path(folder) for folder in folders], at_once=len(folders))()


def _report(cells: Sequence[Cell], options: argparse.Namespace, has_mps: bool) -> None:
    """Print the cells so far, and write them."""
    one = next((cell for cell in cells if cell.way == "alone"), None)
    ratios = {c.way: c.num_runs * one.images_per_s / c.images_per_s for c in cells} if one else {}
    rows = [
        {
            "way": cell.way + (" (MPS)" if cell.way == "processes" and has_mps else ""),
            "runs": cell.num_runs,
            "images/s": f"{cell.images_per_s:,.0f}",
            "time of all : one": f"{ratios[cell.way]:.2f}" if cell.way in ratios else None,
            "start to end : one": f"{cell.training_s / one.training_s:.2f}" if one else None,
            "training, s": f"{cell.training_s:.1f}",
            "command, s": f"{cell.command_s:.1f}",
            "GPU memory, GB": f"{cell.memory_gb:.1f}",
            "seed 0 as alone": "yes" if one and cell.digest == one.digest else "NO",
        }
        for cell in cells
    ]
    print(table(rows), flush=True)
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "child", "folders")}
    write_json(options.out, {"options": settings, "cells": cells, "ratios": ratios, "has_mps": has_mps})
    print(environment(), flush=True)
    goal, is_scale = GOALS[options.model], options.runs == 12
    met = ratios["packed"] <= goal if is_scale and "packed" in ratios else None
    print(verdict(f"12 runs of {options.model} in at most {goal:g} times the time of one", met), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
