"""Where files lie that runs share besides the library."""

from __future__ import annotations

from dataclasses import dataclass

from esper.configs.schema import setting

__all__ = ["StorageConfig"]


@dataclass(kw_only=True)
class StorageConfig:
    """Group `storage`."""

    compile_cache_dir: str | None = setting(
        None,
        "folder in which what torch.compile made is kept, and found again by runs and the forge; it holds machine "
        "code: share it only with people whose code you would run; null: torch's own, in the temporary folder",
    )
