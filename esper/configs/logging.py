"""Logging: level, folder and intervals."""

from __future__ import annotations

from dataclasses import dataclass

from esper.configs.schema import setting

__all__ = ["LoggingConfig"]


@dataclass(kw_only=True)
class LoggingConfig:
    """Group `logging`."""

    log_level: str = setting("INFO", "lowest severity that is shown", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    log_dir: str | None = setting(
        None, "folder of train.log (the terminal output as plain lines) and profile.json; null: the run folder"
    )
    log_interval: int = setting(50, "steps between logged training metrics", low=1)
    eval_interval: int | None = setting(
        None, "steps between validations, in addition to one after each epoch; null: only after epochs", low=1
    )
    report_images: bool = setting(True, "show images of the validation split in report.html, which trackers upload")
