"""The part of `bus.py` that measures a shared Tamiyo, with one run and with many."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.bus_writer import some_signals
from esper.configs import MorphogeneticConfig, RedisConfig
from esper.errors import BusError
from esper.oona.redis import RedisBus
from esper.tamiyo import LocalTamiyo
from esper.tamiyo.remote import SharedTamiyo

__all__ = ["PATIENCE_S", "many_runs", "one_run", "percentile", "rows", "service", "summary"]

_ROOT = Path(__file__).resolve().parent.parent
_COMMAND = "import sys; sys.argv[0] = 'esper'; from esper.cli import main; main()"
PATIENCE_S = 90.0
"""How long to wait for the server and for a reply: what a busy machine delays is measured, and is no error."""
_DEADLINE_S = MorphogeneticConfig().tamiyo_deadline_s
_WARMUP = 20
_NUM_PROCESSES = 2


def percentile(values: Sequence[float], percent: float) -> float:
    """Percentile of values."""
    return float(np.percentile(values, percent))


def summary(values: Sequence[float]) -> dict[str, float]:
    """Summary statistics of measurements."""
    figures = {"mean": statistics.mean(values), "median": statistics.median(values), "p99": percentile(values, 99)}
    return {"n": len(values), **figures, "worst": max(values)}


@contextlib.contextmanager
def service(url: str, folder: Path) -> Iterator[psutil.Process]:
    """`esper services up --only tamiyo` in a child process, after its first reply."""
    options = ["services", "up", "--only=tamiyo", "--name=benchmark", f"redis.url={url}", "device=cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMAND, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        with contextlib.closing(_client(url, "benchmark/first")) as client:
            client.decide(some_signals(1))
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def one_run(url: str, *, num_questions: int) -> dict[str, dict[str, float]]:
    """Seconds of a request, one at a time, to the service and in process."""
    local = LocalTamiyo(MorphogeneticConfig(), rng_seed=0)
    seconds: dict[str, list[float]] = {"shared": [], "in_process": []}
    with contextlib.closing(_client(url, "benchmark/one")) as shared:
        for epoch in range(1, num_questions + _WARMUP + 1):
            signals = some_signals(epoch)
            answers = []
            for name, tamiyo in (("shared", shared), ("in_process", local)):
                started = time.perf_counter()
                answers.append(tamiyo.decide(signals))
                if epoch > _WARMUP:
                    seconds[name].append(time.perf_counter() - started)
            assert answers[0] == answers[1], answers
    return {name: summary(waits) for name, waits in seconds.items()}


def many_runs(url: str, *, pids: Mapping[str, int], num_runs: int, seconds: float) -> dict[str, Any]:
    """Concurrent runs, as threads of a few processes, that send the next request on each reply.

    Returns:
        Latencies in seconds, why requests missed the default deadline, and CPU time per decision by process.
    """
    context = multiprocessing.get_context("spawn")
    line: Any = context.Barrier(_NUM_PROCESSES + 1)
    results: Any = context.Queue()
    parts = [num_runs // _NUM_PROCESSES + (index < num_runs % _NUM_PROCESSES) for index in range(_NUM_PROCESSES)]
    children = [
        context.Process(target=_run_part, args=(url, index, num, seconds, line, results), daemon=True)
        for index, num in enumerate(parts)
    ]
    for child in children:
        child.start()
    watched = {name: psutil.Process(pid) for name, pid in pids.items()}
    line.wait(PATIENCE_S)
    before = {name: sum(process.cpu_times()[:2]) for name, process in watched.items()}
    found = [results.get(timeout=seconds + PATIENCE_S) for _ in children]
    cpu_s = {name: sum(process.cpu_times()[:2]) - before[name] for name, process in watched.items()}
    for child in children:
        child.join()
    waits = [one for child in found for one in child["waits"]]
    cpu_s["asking"] = sum(child["cpu_s"] for child in found)
    return {
        "num_runs": num_runs,
        "waits": summary(waits),
        "per_s": len(waits) / max(child["took_s"] for child in found),
        "missed": [why for child in found for why in child["missed"]],
        "cpu_s": {name: value / len(waits) for name, value in cpu_s.items()},
    }


def rows(one: Mapping[str, Any], many: Mapping[str, Any]) -> list[dict[str, object]]:
    """Rows of a table; the baseline is the in-process decision on the same signals."""
    measured: list[tuple[str, Mapping[str, float], Mapping[str, Any]]] = [
        ("in process", one["in_process"], {}),
        ("one run", one["shared"], {}),
    ]
    measured.append((f"{many['num_runs']} runs at once", many["waits"], many))
    return [
        {
            "who asks": name,
            "n": waits["n"],
            "ms: median": f"{1e3 * waits['median']:.2f}",
            "p99": f"{1e3 * waits['p99']:.2f}",
            "worst": f"{1e3 * waits['worst']:.1f}",
            "decisions a second": f"{found.get('per_s', 1 / waits['mean']):.0f}",
            "missed deadlines": len(found["missed"]) if found else 0,
            "processor, ms a decision": ", ".join(f"{who} {1e3 * took:.2f}" for who, took in found["cpu_s"].items())
            if found
            else None,
        }
        for name, waits, found in measured
    ]


def _client(url: str, run_id: str) -> SharedTamiyo:
    config = MorphogeneticConfig(tamiyo_deadline_s=PATIENCE_S)
    return SharedTamiyo(RedisBus(RedisConfig(url=url, timeout_s=PATIENCE_S)), run_id=run_id, config=config, rng_seed=0)


def _run_part(url: str, part: int, num_runs: int, seconds: float, line: Any, results: Any) -> None:
    """A child process with some of the runs: reports latencies, errors and CPU time."""
    waits: list[float] = []
    missed: list[str] = []

    def run(number: int, until: float) -> None:
        with contextlib.closing(_client(url, f"benchmark/{part}-{number}")) as tamiyo:
            epoch = 0
            while (started := time.perf_counter()) < until:
                epoch += 1
                try:
                    tamiyo.decide(some_signals(epoch))
                except BusError as error:
                    missed.append(str(error))
                    continue
                waits.append(took_s := time.perf_counter() - started)
                if took_s > _DEADLINE_S:
                    missed.append(f"{took_s:.1f} s")

    line.wait(PATIENCE_S)
    started, cpu_s = time.perf_counter(), time.process_time()
    threads = [threading.Thread(target=run, args=(number, started + seconds)) for number in range(num_runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
    results.put({"waits": waits, "missed": missed, "took_s": took_s, "cpu_s": cpu_s})
