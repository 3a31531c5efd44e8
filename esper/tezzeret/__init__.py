"""Tezzeret: the kernel forge."""

from __future__ import annotations

from esper.tezzeret.forge import Cost, count, forge, inspect

__all__ = ["Cost", "count", "forge", "inspect"]
