"""The growth recipe: the ordered list of grafts that rebuilds a grown network from its host."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

__all__ = ["Graft"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graft:
    """One growth event: a module in the network.

    Attributes:
        graft_id: number of the germination in its run, from 1; part of the names of the module's parameters.
        site: e.g. `layer2.0:beside`.
        blueprint_id: e.g. `conv3x3`.
        init_seed: random seed of its initial weights.
        init_gain: initial output scale.
        born_step: optimizer step before which it was attached.
        definition: definition of a declared blueprint, in JSON, so that no library is needed; None for built-in ones.
        sources: blueprint `copy`: the blocks that were copied, in order; `layer1.0+2` is the second copy behind one.
        copy_init: blueprint `copy`: the copies' initial weights, `trained`, `zeroed` or `fresh`.
    """

    graft_id: int
    site: str
    blueprint_id: str
    init_seed: int
    init_gain: float
    born_step: int
    definition: str | None = None
    sources: tuple[str, ...] = ()
    copy_init: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))  # JSON has lists

    def entry(self) -> dict[str, Any]:
        """The fields as JSON data, for files."""
        fields = dataclasses.asdict(self)
        for name in ("definition", "sources", "copy_init"):
            if not fields[name]:
                del fields[name]
        return fields
