"""What a GPU can do for several runs: their captured steps, replayed by one thread, and nothing else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.stepping import opened, own_stream, train_steps, wait
from esper.errors import RunError
from esper.sweep.manifest import Member

__all__ = ["NUM_STEPS", "print_seconds", "printed_seconds"]

NUM_STEPS = 40
"""Steps of each run that are timed."""
_WARMUP_STEPS = 4
_CAPTURED_STEPS = 8
"""Steps after which a run has captured them."""
_TOLD = "seconds of replays: "


def print_seconds(members: Sequence[Member]) -> None:
    """Replay `NUM_STEPS` steps of each run, the runs in turn, each on a stream of its own; print how long it took."""
    graphs, streams = [], []
    with contextlib.ExitStack() as stack:
        for one in members:
            own_stream()
            run = stack.enter_context(opened(one.config(), one.run_dir))
            train_steps(run, _CAPTURED_STEPS)
            assert run.step._graph is not None
            assert run.step._graph._graph is not None
            graphs.append(run.step._graph._graph)
            streams.append(torch.cuda.current_stream())
            run.step._position.zero_()
            run.step._advance.zero_()  # else the replays would leave the data behind
            wait(run)
        for num_steps in (_WARMUP_STEPS, NUM_STEPS):
            started = time.perf_counter()
            for _ in range(num_steps):
                for graph, stream in zip(graphs, streams, strict=True):
                    with torch.cuda.stream(stream):
                        graph.replay()
            torch.cuda.synchronize()
            seconds = time.perf_counter() - started
    print(f"{_TOLD}{seconds}", flush=True)


def printed_seconds(log: Path) -> float:
    """What `print_seconds` has printed into a file.

    Raises:
        RunError: it has failed.
    """
    lines = log.read_text(errors="replace").splitlines()
    told = [float(line.removeprefix(_TOLD)) for line in lines if line.startswith(_TOLD)]
    if not told:
        raise RunError("\n".join(["the captured steps were not replayed", *lines[-20:]]))
    return told[0]
