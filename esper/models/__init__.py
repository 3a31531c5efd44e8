"""Host networks, and gradient checkpointing for them."""

from __future__ import annotations

from esper.models.host import build_host
from esper.models.memory_format import compile_as_it_lies, memory_format
from esper.models.recompute import checkpoint_blocks
from esper.models.timm_host import timm_sizes

__all__ = ["build_host", "checkpoint_blocks", "compile_as_it_lies", "memory_format", "timm_sizes"]
