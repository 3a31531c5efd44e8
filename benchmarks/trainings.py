"""Many trainings in parallel processes: each variant with each random seed; finished ones are not repeated."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from benchmarks.places import image_folder, new_folder

__all__ = ["EXPERIMENT", "arguments", "hardware", "mean_and_error", "train_all"]

EXPERIMENT = "benchmark"
"""Experiment name of the trainings."""

Variants = Mapping[str, Sequence[str]]
"""Name of a variant → its overrides of `esper-train`."""


def arguments(description: str) -> argparse.ArgumentParser:
    """The shared command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=image_folder, required=True, help="DATA/train/CLASS/*, DATA/test/CLASS/*")
    parser.add_argument("--out", type=new_folder, required=True, help="folder for the runs and the results")
    parser.add_argument("--seeds", type=int, default=4, help="random seeds of each variant")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--jobs", type=int, default=2, help="parallel trainings")
    parser.add_argument("--budget-seconds", type=float, default=float("inf"), help="start no training after this time")
    return parser


def train_all(
    variants: Variants, common: Sequence[str], *, seeds: int, jobs: int, out: Path, budget_seconds: float
) -> dict[str, dict[int, dict[str, Any]]]:
    """Train every variant with every seed; returns variant → seed → the run's result.

    Finished runs are not repeated. All variants of a seed come before the next seed, so that an early end leaves whole
    comparisons.
    """
    started = time.monotonic()
    planned = [(name, seed) for seed in range(seeds) for name in variants]
    results: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in variants}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        waiting = iter(planned)
        running = {}

        def start_next() -> None:
            if time.monotonic() - started < budget_seconds and (job := next(waiting, None)):
                name, seed = job
                overrides = (*common, *variants[name], f"rng_seed={seed}")
                # The parent of the experiment's folder holds the cache of decoded images.
                folder = out / EXPERIMENT / f"{name.replace(' ', '_').replace(',', '')}-seed-{seed}"
                running[pool.submit(_train, overrides, folder)] = job

        for _ in range(jobs):
            start_next()
        while running:
            future = next(as_completed(running))
            name, seed = running.pop(future)
            results[name][seed] = future.result()
            print(
                f"{time.monotonic() - started:6.0f} s  {name}, seed {seed}: {results[name][seed]['test_accuracy']:.4f}",
                flush=True,
            )
            start_next()
    return results


def _train(overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    from esper import fit

    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        fit(*overrides, f"experiment_name={EXPERIMENT}", "tracking=none", run_dir=folder)
    result = json.loads((folder / "status.json").read_text())["result"]
    assert isinstance(result, dict)
    return result


def mean_and_error(values: Sequence[float]) -> str:
    """Mean ± standard error, in percent."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{100 * statistics.mean(values):.2f} ± {100 * error:.2f}"


def hardware() -> dict[str, str]:
    """Hardware and versions of a result."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"device": device, "torch": torch.__version__, "python": platform.python_version()}
