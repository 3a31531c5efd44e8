"""How the threads of OpenMP, with which torch computes on a CPU, wait for one another."""

from __future__ import annotations

import os

__all__ = ["sleep_while_waiting"]

_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def sleep_while_waiting() -> None:
    """Let threads sleep instead of spin, unless the environment says how they wait; call it before torch is imported.

    Where other processes use the cores too, threads that spin take them from the threads they wait for, and small
    networks train ten times slower.
    """
    if not any(name in os.environ for name in _CHOICES):
        os.environ["OMP_WAIT_POLICY"] = "passive"
