"""How many CPU cores this process may use."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path, PurePosixPath

__all__ = ["num_cores"]

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def num_cores() -> int:
    """Cores that the scheduler gives this process, by its affinity and its control groups' limits (version 2)."""
    num = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, round(min(num, _quota())))


def _quota() -> float:
    """The smallest limit of this process' control group and those above it, in cores; inf: none."""
    quota = math.inf
    with contextlib.suppress(OSError, ValueError):
        own = PurePosixPath(_OWN.read_text().partition("0::/")[2].partition("\n")[0])
        for group in (own, *own.parents):
            with contextlib.suppress(OSError, ValueError):  # without a limit it says max
                limit, period = map(int, (_CGROUPS / group / "cpu.max").read_text().split())
                quota = min(quota, limit / period)
    return quota
