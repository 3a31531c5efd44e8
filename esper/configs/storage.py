"""Files shared by runs, besides the library."""

from __future__ import annotations

from dataclasses import dataclass

from esper.configs.schema import setting

__all__ = ["StorageConfig"]


@dataclass(kw_only=True)
class StorageConfig:
    """Group `storage`."""

    compile_cache_dir: str | None = setting(
        None,
        "cache of torch.compile, used by runs and the forge; it contains machine code, so share it only with people "
        "whose code you would run; null: torch's own, in the temporary folder",
    )
