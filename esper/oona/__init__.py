"""Oona, the message bus: in this process, or Redis streams."""

from __future__ import annotations

from esper.oona.bus import Bus, Entry, message
from esper.oona.memory import MemoryBus

__all__ = ["Bus", "Entry", "MemoryBus", "message"]
