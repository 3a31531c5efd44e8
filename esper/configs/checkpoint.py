"""When the run is saved, how many saves are kept, and how it is resumed."""

from __future__ import annotations

from dataclasses import dataclass

from esper.configs.schema import setting

__all__ = ["CheckpointConfig"]


@dataclass(kw_only=True)
class CheckpointConfig:
    """Group `checkpoint`."""

    checkpoint_dir: str | None = setting(
        None, "folder in which each run has one for its checkpoints; null: checkpoints in the run folder"
    )
    save_best: bool = setting(True, "keep the epoch with the lowest validation loss")
    save_last: bool = setting(True, "save when training ends or is interrupted")
    save_interval: int = setting(1, "epochs between saves", low=1)
    max_checkpoints: int = setting(2, "most saves kept, besides the best", low=1)
    resume_from: str | None = setting(None, "checkpoint folder to start from, of this or another run")
    auto_resume: bool = setting(True, "go on from the newest checkpoint of the same run")
