"""`esper services`: Tamiyo and Tezzeret as services for many runs."""

from __future__ import annotations

__all__ = ["SERVICES"]

SERVICES = ("tamiyo", "tezzeret")
