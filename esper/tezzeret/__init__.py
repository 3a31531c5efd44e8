"""Tezzeret, the kernel forge: builds, checks, counts and measures blueprints."""

from __future__ import annotations

from esper.tezzeret.build import build_kernel, check_kernel, kernel_cost

__all__ = ["build_kernel", "check_kernel", "kernel_cost"]
