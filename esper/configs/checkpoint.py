"""When checkpoints are saved, how many are kept, and how a run resumes."""

from __future__ import annotations

from dataclasses import dataclass

from esper.configs.schema import setting

__all__ = ["CheckpointConfig"]


@dataclass(kw_only=True)
class CheckpointConfig:
    """Group `checkpoint`."""

    checkpoint_dir: str | None = setting(
        None, "parent folder of the runs' checkpoint folders; null: checkpoints/ in the run folder"
    )
    save_best: bool = setting(True, "keep the checkpoint with the lowest validation loss")
    save_trunk: bool = setting(
        False, "scheduler=wsd: keep the last checkpoint before the learning rate decays, to start other runs from"
    )
    save_last: bool = setting(True, "save when training ends or is interrupted")
    save_interval: int = setting(1, "epochs between checkpoints", low=1)
    max_checkpoints: int = setting(
        2, "maximum checkpoints kept, besides best and trunk; as many of before growth that is on trial", low=1
    )
    resume_from: str | None = setting(None, "checkpoint to start from, of this or another run on the same data")
    auto_resume: bool = setting(True, "resume from the newest checkpoint of the same run")
