"""Which checkpoint a run resumes from."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from esper.configs import CheckpointConfig
from esper.configs.identity import digest
from esper.contracts.events import Notice
from esper.errors import CheckpointError, RunError
from esper.tolaria.checkpoints import files
from esper.tolaria.checkpoints.contents import restore
from esper.tolaria.checkpoints.files import Snapshot
from esper.tolaria.checkpoints.origin import fitting, place, require_within_budget
from esper.tolaria.run import Run
from esper.tracking import read

__all__ = ["resume", "rewind_target"]

_NUM_SHOWN = 3
"""Foreign names that a message lists."""


def resume(run: Run, *, back_to: Path | None = None) -> str | None:
    """Restore the checkpoint that the run resumes from; returns its path, None for a fresh start.

    In this order: `back_to`, of before a growth that is undone; `checkpoint.resume_from` if it is a checkpoint of this
    run; with `auto_resume`, the run's newest checkpoint that loads; `resume_from` of another run. The run's journal
    and checkpoints after that point are moved away.

    Raises:
        CheckpointError: `resume_from` cannot be used.
        ConfigError: `resume_from` does not suit the settings or the data.
        RunError: the checkpoints are another run's.
    """
    start, is_other, warnings = run.ranks.on_rank0(lambda: _find_start(run, back_to))
    if start is not None:
        if is_other:
            with fitting(start[0]):
                restore(run, start[1])
            require_within_budget(run, start[0])
        else:
            restore(run, start[1])
    for message in warnings:
        run.warn(message)
    for level, message in run.ranks.on_rank0(lambda: [*_set_aside(run), *_others(run)]):
        if json.dumps(message).encode() not in run.journal.path.read_bytes():
            run.emit(Notice, level=level, message=message)
    return str(start[0]) if start else None


def rewind_target(config: CheckpointConfig, checkpoint_dir: Path) -> Path | None:
    """The checkpoint in `resume_from` if it is one of the run's own: even a finished run resumes from it."""
    path = Path(config.resume_from).expanduser() if config.resume_from else None
    return path if path is not None and path.resolve().parent == checkpoint_dir.resolve() else None


def _find_start(run: Run, back_to: Path | None) -> tuple[tuple[Path, Snapshot] | None, bool, list[str]]:
    """The checkpoint to start from, whether it is another run's, and a warning for each lost one.

    Rewinds the run's folder and journal.
    """
    config = run.config.checkpoint
    lost: list[str] = []
    notices: list[str] = []
    own: tuple[Path, Snapshot] | None = None
    files.recover(run.checkpoint_dir)
    if path := back_to or rewind_target(config, run.checkpoint_dir):
        own = path, files.load_given(path)
    elif config.auto_resume and not run.config.fresh:
        own = _newest_loadable(files.find_checkpoints(run.checkpoint_dir, complete=False), lost)
        if own is None and not lost:
            lost += _gone(run)
        if own and own[1].digest != digest(run.config) and not _is_recorded(run):
            raise RunError(
                f"{run.checkpoint_dir} holds the checkpoints of a run of other settings, which has no config.yaml; "
                "give another checkpoint.checkpoint_dir or run folder, or fresh=true, which sets them aside"
            )
    start = own
    if start is None and config.resume_from is not None:
        if run.config.model.init_from is not None:
            raise CheckpointError(
                f"checkpoint.resume_from={config.resume_from} and model.init_from={run.config.model.init_from} both "
                "say where to start; leave one of them out"
            )
        path = Path(config.resume_from).expanduser()
        placed, notices = place(run, path, files.load_given(path))
        start = path, placed
    after_step = own[1].step if own else -1
    undone = back_to.with_name(back_to.name.replace("before", "step")) if back_to else None
    files.move_to_abandoned(run.checkpoint_dir, after_step=after_step, undone=undone)
    run.journal.rewind(own[1].journal_offset if own else 0)
    went_on = f"resumed from {own[0].name}" if own else "no checkpoint of this run loads: started over"
    from_other = f", from {start[0]}" if start and not own else ""
    return start, own is None, [*(f"{message}; {went_on}{from_other}" for message in lost), *notices]


def _gone(run: Run) -> list[str]:
    """A message if the journal says that checkpoints were saved, for a run that has none."""
    saved = None
    with contextlib.suppress(RunError):  # a damaged line: what stands before it still tells
        for event in read(run.journal.path):
            if event["kind"] == "checkpoint" and not event.get("is_best"):
                saved = event["path"]
    return [f"the journal says that {saved} was saved, but {run.checkpoint_dir} holds no checkpoint"] if saved else []


def _is_recorded(run: Run) -> bool:
    """Whether `require_same_run` has compared the settings."""
    return any((folder / "config.yaml").exists() for folder in (run.run_dir, run.checkpoint_dir))


def _set_aside(run: Run) -> list[tuple[str, str]]:
    """Level and message for each damaged file that `RunFolder.mend` set aside."""
    names = sorted(path.name for path in run.run_dir.glob("*.damaged*"))
    return [("WARNING", f"{name} in the run folder is what was damaged; the run went on without it") for name in names]


def _others(run: Run) -> list[tuple[str, str]]:
    """Level and message about what else lies in the checkpoint folder."""
    others = files.find_others(run.checkpoint_dir)
    shown = ", ".join(others[:_NUM_SHOWN]) + (f" and {len(others) - _NUM_SHOWN} more" * (len(others) > _NUM_SHOWN))
    message = f"{run.checkpoint_dir} also holds what is not a checkpoint of this run, left alone: {shown}"
    return [("INFO", message)] if others else []


def _newest_loadable(paths: list[Path], damaged: list[str]) -> tuple[Path, Snapshot] | None:
    """The first checkpoint that loads; the errors of those before it are appended to `damaged`."""
    for path in paths:
        try:
            return path, files.load(path)
        except CheckpointError as error:
            damaged.append(str(error))
    return None
