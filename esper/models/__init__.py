"""Host networks, and gradient checkpointing for them."""

from __future__ import annotations

from esper.models.host import build_host
from esper.models.memory_format import memory_format
from esper.models.recompute import checkpoint_blocks
from esper.models.timm_host import timm_sizes

__all__ = ["build_host", "checkpoint_blocks", "memory_format", "timm_sizes"]
