"""The training thread of `bus.py`: writes events into a journal at a steady rate, with or without a tracker thread.

Imports no torch, as four of these run at the same time. Prints `ready`, waits on stdin for the time to start, prints
`written`, and ends at the next line. Arguments: run folder, URL of the bus or `-`, number of events, events per second.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from esper.configs.redis import RedisConfig
from esper.contracts.events import EpochEnded, Event, Scored
from esper.contracts.health import HealthSignal
from esper.contracts.lifecycle import SeedLifecycleState
from esper.oona.publish import RunPublisher
from esper.oona.redis import RedisBus, address
from esper.tracking import Journal, Tracker, TrackerThread

__all__ = ["FOUND", "SCORED_EVERY", "an_epoch", "some_signals"]

FOUND = "found.json"
SCORED_EVERY = 40
_REPORT_S = 0.5  # as a run has it


def main() -> None:
    """Write; leave the seconds of each write, and the share of a core that other threads took meanwhile."""
    run_dir, url, num_events, rate = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    run_dir.mkdir()
    journal = Journal(run_dir / "journal.jsonl")
    scored = Scored(step=1, epoch=1, signals=_fields(1), cost_macs=10**9, cost_s=0.1)
    for index in range(100):
        journal.write(an_epoch(index))
    journal.rewind(0)
    print("ready", flush=True)
    begin = float(sys.stdin.readline())
    thread = None
    if url != "-":
        config = RedisConfig(url=url)
        target = Tracker(
            name="Redis", place=address(config), open=lambda: RunPublisher(RedisBus(config), run_dir=run_dir)
        )
        thread = TrackerThread(target, interval_s=_REPORT_S, run_dir=run_dir, warn=_expected)
    seconds = []
    cpu_s = time.process_time() - time.thread_time()
    for index in range(num_events):
        event: Event = an_epoch(index) if (index + 1) % SCORED_EVERY else scored
        time.sleep(max(0.0, begin + index / rate - time.monotonic()))
        started = time.perf_counter()
        journal.write(event)
        seconds.append(time.perf_counter() - started)
    cpu_s = time.process_time() - time.thread_time() - cpu_s
    print("written", flush=True)
    sys.stdin.readline()
    if thread is not None:
        thread.close()
    journal.close()
    share = cpu_s / (num_events / rate)
    (run_dir / FOUND).write_text(json.dumps({"seconds": seconds, "other_threads": share}))


def some_signals(epoch: int, num_sites: int = 16) -> tuple[HealthSignal, ...]:
    """Plausible signals of sites in training; every third epoch one site stands out."""
    return tuple(
        HealthSignal(
            site=f"layer{1 + index // 4}.{index // 2 % 2}:{('beside', 'after')[index % 2]}",
            layer=f"layer{1 + index // 4}",
            kind=("beside", "after")[index % 2],
            epoch=epoch,
            progress=min(1.0, epoch / 100_000),
            in_shape=(64, 32, 32),
            out_shape=(64, 32, 32),
            state=SeedLifecycleState.DORMANT,
            state_epoch=0,
            num_kernels=0,
            has_room=True,
            last_adaptation_epoch=None,
            score=0.0123456789 / (index + 1),
            health=0.1 if index == 5 and epoch % 3 == 0 else 0.5 + index / 40,
            activation_variance=1.23456789 + index,
            gradient_norm=0.00123456789 / (index + 1),
            score_error=0.000123456789,
            plain_score=0.0234567891,
            effective_rank=31.4159265 + index,
            narrowest_width=64,
            added_macs=75_497_472,
            added_parameters=73_984,
        )
        for index in range(num_sites)
    )


def an_epoch(index: int) -> EpochEnded:
    """The end of an epoch."""
    return EpochEnded(
        step=index,
        epoch=index,
        train_loss=1 / (index + 3),
        train_metrics={"accuracy": 0.7123456},
        val_loss=2 / (index + 3),
        val_metrics={"accuracy": 0.6123456},
        learning_rate=0.1,
        adaptations_applied=0,
        epoch_time=1.5,
    )


def _fields(epoch: int) -> list[dict[str, Any]]:
    return [dataclasses.asdict(signal) for signal in some_signals(epoch)]


def _expected(warning: str) -> None:
    """Ignore the warning that the server is unavailable."""


if __name__ == "__main__":
    main()
