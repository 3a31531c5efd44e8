"""Where torch.compile keeps what it made."""

from __future__ import annotations

import os
from pathlib import Path

from esper.configs import StorageConfig

__all__ = ["keep_compiled"]


def keep_compiled(config: StorageConfig) -> None:
    """Have this process, and those it starts, look for compiled code in the configured folder and leave it there."""
    if config.compile_cache_dir is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(config.compile_cache_dir).absolute())
