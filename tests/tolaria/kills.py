"""A process that grows a network and is killed at chosen function calls of that growth; see `test_kill_in_growth.py`.

`python -m tests.tolaria.kills FOLDER NUM GAIN_RATE`: NUM kills, evenly spread over the calls between the decision to
grow and the first log line after it, each of a process of its own that is started again; with a large GAIN_RATE, the
run goes back in between. Prints a line of JSON: the calls that were counted, and for each kill, where it was and
whether the run's tensors, and the steps in its journal, are those of a run that was not killed.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from esper.contracts.events import Event
from esper.tolaria import TolariaTrainer
from tests.conftest import journal_of, tiny_config, use
from tests.tolaria.checkpoints.test_resume import everything

PLACES = ("esper/kasmina/", "esper/tolaria/", "esper/tracking/journal")


def train(run_dir: Path, *, gain_rate: float, die_at: int | None) -> None:
    """Train to the end; count the calls in the growth, and die at one of them. Saves all tensors and the count."""
    torch.set_num_threads(1)
    num_calls = 0

    def on_call(frame: FrameType, event: str, _: Any) -> None:
        nonlocal num_calls
        if event == "call" and any(place in frame.f_code.co_filename for place in PLACES):
            num_calls += 1
            if num_calls == die_at:
                (run_dir.parent / "where").write_text(f"{frame.f_code.co_filename}:{frame.f_code.co_name}")
                os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: Event) -> None:  # called in the thread that trains
        if die_at is not None and event.kind == "signals" and event.step == 6:
            sys.setprofile(on_call)
            threading.setprofile(on_call)  # the thread that writes checkpoints has not begun
        elif event.kind == "step" and event.step > 6:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]

    async def body(trainer: TolariaTrainer) -> None:
        trainer.run.journal.subscribe(watch)
        await trainer.train()
        torch.save(everything(trainer), run_dir.parent / "tensors.pt")

    config = tiny_config(
        morphogenetic__insertion_gain_rate=gain_rate, optimization__ema_decay=0.9, optimization__max_epochs=2
    )
    use(config, run_dir, body)
    (run_dir.parent / "calls").write_text(str(num_calls))


def in_a_fork(work: Callable[[], None]) -> int:
    """Exit status of a forked process."""
    if pid := os.fork():
        return os.waitpid(pid, 0)[1]
    try:
        work()
    finally:
        os._exit(0)


def story(run_dir: Path) -> list[tuple[str, int]]:
    """What the journal tells, but for starts, checkpoints and notices."""
    lines = journal_of(run_dir)
    return [(e["kind"], e["step"]) for e in lines if e["kind"] not in ("run_started", "checkpoint", "notice")]


def main(folder: Path, num: int, gain_rate: float) -> None:
    """See the module."""
    straight = folder / "straight" / "tiny" / "run"
    assert in_a_fork(lambda: train(straight, gain_rate=gain_rate, die_at=0)) == 0
    expected = torch.load(straight.parent / "tensors.pt")
    num_calls, kills = int((straight.parent / "calls").read_text()), []
    for i in range(num):
        run_dir, die_at = folder / str(i) / "tiny" / "run", 1 + i * num_calls // num
        die = functools.partial(train, run_dir, gain_rate=gain_rate, die_at=die_at)
        status = in_a_fork(die)
        in_a_fork(functools.partial(train, run_dir, gain_rate=gain_rate, die_at=None))
        tensors = torch.load(run_dir.parent / "tensors.pt")
        same = tensors.keys() == expected.keys() and all(torch.equal(tensors[k], expected[k]) for k in expected)
        kills.append(
            {
                "killed": os.WIFSIGNALED(status),
                "where": (run_dir.parent / "where").read_text(),
                "same": same and story(run_dir) == story(straight),
            }
        )
    sys.stdout.write(json.dumps({"num_calls": num_calls, "kills": kills}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
