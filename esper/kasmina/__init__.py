"""Kasmina: the morphable model. Sites, slots, surgery and scores."""

from __future__ import annotations

from esper.kasmina.fold import fold, unwrap
from esper.kasmina.model import MorphableModel, wrap
from esper.kasmina.sites import Site, find_blocks, find_sites
from esper.kasmina.slot import SeedSlot

__all__ = ["MorphableModel", "SeedSlot", "Site", "find_blocks", "find_sites", "fold", "unwrap", "wrap"]
