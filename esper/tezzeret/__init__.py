"""Tezzeret: the kernel forge."""

from __future__ import annotations

from esper.tezzeret.forge import Cost, count, estimate, forge, inspect

__all__ = ["Cost", "count", "estimate", "forge", "inspect"]
