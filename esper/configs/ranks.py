"""Distributed training."""

from __future__ import annotations

from dataclasses import dataclass

from esper.configs.schema import setting

__all__ = ["RanksConfig"]


@dataclass(kw_only=True)
class RanksConfig:
    """Group `ranks`."""

    timeout_s: float = setting(
        60.0,
        "seconds after which a run ends because a rank does not answer, or no rank makes progress beyond the longest "
        "pause so far",
        above=0,
    )
    sync_batch_norm: bool = setting(
        False, "several ranks: batch norm normalises by the batch of all ranks, instead of each rank's rows"
    )
