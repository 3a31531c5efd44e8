"""The check of streamed image files in a run's first epoch: what training and tests would meet later, or never tell."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import torch

from esper.data import FileSet
from esper.data.loader import epoch_order
from esper.images.jpeg import describe_damage
from esper.tolaria.run import Run

__all__ = ["begin_file_check", "end_file_check", "tell_damage"]


def begin_file_check(run: Run) -> Generator[None, None, None] | None:
    """In the first epoch, look for damage in all files that are decoded, and decode those that the epoch leaves out.

    Returns:
        A generator that decodes a few of the latter at every step (of test and judge split, and of the training images
        that are left over), and raises a `DataError` if it cannot; None in later epochs, and for images in memory.
    """
    splits, ranks, config = run.parts.splits, run.ranks, run.config
    if run.state.epoch > 0 or not isinstance(splits.train, FileSet):
        return None
    run.parts.pool.checks = True
    order, shards = torch.arange(len(splits.train)), []
    if config.dataset.shuffle:
        order = epoch_order(len(splits.train), epoch=0, rng_seed=config.rng_seed)
    for split in (splits.test, splits.judge, splits.train[order[run.steps_per_epoch * config.dataset.batch_size :]]):
        assert isinstance(split, FileSet)
        shards.append(split[torch.arange(len(split))[ranks.shard(len(split))]])
    return run.parts.pool.check(shards)


def end_file_check(run: Run, checking: Generator[None, None, None]) -> None:
    """Decode what is left, and warn of files that are damaged inside.

    Raises:
        DataError: an image cannot be decoded.
    """
    for _ in checking:
        pass
    run.parts.pool.checks = False
    tell_damage(run)


def tell_damage(run: Run) -> None:
    """Warn of the files that are damaged inside, as far as they were decoded."""
    damaged: dict[str, str] = {}
    for found in run.ranks.gather(run.parts.pool.damaged):
        damaged |= found
    if damaged:
        run.warn(describe_damage(damaged, folder=Path(run.config.dataset.data_dir).expanduser()))
