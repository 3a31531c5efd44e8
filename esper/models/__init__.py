"""Host networks, their memory format, and gradient checkpointing."""

from __future__ import annotations

from esper.models.freeze import freeze
from esper.models.host import build_host, host_family
from esper.models.memory_format import disable_inductor_layout_optimization, memory_format
from esper.models.recompute import checkpoint_blocks, is_checkpointed
from esper.models.weights import load_weights

__all__ = [
    "build_host",
    "checkpoint_blocks",
    "disable_inductor_layout_optimization",
    "freeze",
    "host_family",
    "is_checkpointed",
    "load_weights",
    "memory_format",
]
