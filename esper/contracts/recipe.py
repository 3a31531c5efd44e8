"""The growth recipe: the ordered list of grafts that rebuilds a grown network from its host."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

__all__ = ["Graft"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graft:
    """One module that stands in the network.

    Attributes:
        graft_id: running number of the germination in its run, from 1; also names the module's parameters.
        site: where it stands, e.g. `layer2.0:beside`.
        blueprint_id: what was built, e.g. `conv3x3`.
        init_seed: random seed of its initial weights.
        init_gain: value of its output scale at birth.
        born_step: optimizer step before which it was attached.
        definition: what a declared blueprint is made of, in JSON: the recipe needs no library; None: it is built in.
    """

    graft_id: int
    site: str
    blueprint_id: str
    init_seed: int
    init_gain: float
    born_step: int
    definition: str | None = None

    def entry(self) -> dict[str, Any]:
        """The fields, as a recipe on disk holds them."""
        fields = dataclasses.asdict(self)
        if self.definition is None:
            del fields["definition"]
        return fields
