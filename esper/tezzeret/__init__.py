"""Tezzeret: the kernel forge."""

from __future__ import annotations

from esper.tezzeret.forge import estimate, forge, inspect

__all__ = ["estimate", "forge", "inspect"]
