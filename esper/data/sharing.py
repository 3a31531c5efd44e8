"""Data that runs of one process share, see `esper.turns`."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from esper import turns
from esper.configs import DatasetConfig

__all__ = ["loaded", "on_device"]

T = TypeVar("T")


def loaded(load: Callable[[DatasetConfig, Path | None], T], config: DatasetConfig, cache_dir: Path | None) -> T:
    """What `load` reads; runs that train together read the same only once, and keep it as long as one of them runs.

    Their folders, and with them `cache_dir`, may differ.
    """
    turn = turns.current()
    if turn is None:
        return load(config, cache_dir)
    key = load.__module__, repr(config)
    for run in turn.group.runs:
        if key in run.loaded:
            turn.loaded[key] = run.loaded[key]
    if key not in turn.loaded:
        turn.loaded[key] = load(config, cache_dir)
    found: T = turn.loaded[key]
    return found


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. Runs that train together get one copy of equal tensors, which goes with the last run."""
    turn = turns.current()
    if turn is None:
        return tensor.to(device)
    kept = turn.group.kept
    kept[:] = [(original, copy) for original, copy in kept if copy() is not None]
    for original, copy in kept:
        is_same = original is tensor or (original.dtype == tensor.dtype and torch.equal(original, tensor))
        if is_same and (found := copy()) is not None and found.device.type == device.type:
            assert isinstance(found, Tensor)
            return found
    placed = tensor.to(device)
    if placed.is_cuda:
        torch.cuda.current_stream().synchronize()  # before the streams of other runs read it
    kept.append((tensor, weakref.ref(placed)))
    return placed
