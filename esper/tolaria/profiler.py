"""Profile some training steps: `profile_training=true`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from esper.tolaria.run import Run

__all__ = ["profiler"]


@contextlib.contextmanager
def profiler(run: Run) -> Iterator[Callable[[], None]]:
    """Profile a few steps of the run's first epoch if asked to; yields a function to call after every step."""
    target = run.log_dir / "profile.json"
    if not run.config.profile_training or target.exists():
        yield lambda: None
        return
    with torch.profiler.profile(
        schedule=torch.profiler.schedule(wait=1, warmup=1, active=4, repeat=1),
        on_trace_ready=lambda profile: profile.export_chrome_trace(str(target)),
    ) as profile:
        yield profile.step
