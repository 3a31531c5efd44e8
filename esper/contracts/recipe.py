"""The growth recipe: the ordered list of grafts that rebuilds a grown network from its host."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from esper.errors import ConfigError

__all__ = ["Graft", "part_of"]


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
        copy_init: blueprint `copy`: the copies' initial weights: `trained`, `shared`, `zeroed` or `fresh`.
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


def part_of(recipe: Sequence[Graft], fraction: float, *, num_macs: Sequence[int]) -> list[Graft]:
    """The recipe of a network in between: the host with about this fraction of what grew.

    Of copies, every graft keeps its first ones, so that a pattern in the chain of blocks goes on as in a network built
    that deep; the fraction is counted over the grafts in order, so that of single copies every second one stays. Of
    other modules, those that grew first stay, up to that whose MACs bring them nearest to the fraction.

    Args:
        recipe: in order of birth.
        fraction: in (0, 1).
        num_macs: MACs of each graft; those of copies are not read.

    Raises:
        ConfigError: nothing lies in between.
    """
    kept = [*_fewer_copies(recipe, fraction), *_first_modules(recipe, fraction, num_macs)]
    if not kept:
        grown = ", ".join(f"{graft.blueprint_id} at {graft.site}" for graft in recipe) or "nothing"
        raise ConfigError(
            f"morphogenetic.recipe_fraction={fraction:g}: the recorded run grew {grown}: no size lies in between; "
            "leave this run (arm=between_flops) out"
        )
    return sorted(kept, key=lambda graft: graft.graft_id)


def _fewer_copies(recipe: Sequence[Graft], fraction: float) -> list[Graft]:
    """The grafts of copies, each with the copies that it keeps, named by the block of the host that they come from."""
    origins: dict[str, list[str]] = {}  # of the copies behind each block, in order
    total = num_kept = 0
    kept = []
    for graft in recipe:
        sources = [_origin(source, origins) for source in graft.sources]
        origins.setdefault(graft.site.rpartition(":")[0], []).extend(sources)
        total += len(sources)
        num = int(fraction * total + 1e-9) - num_kept
        if num:
            kept.append(dataclasses.replace(graft, sources=tuple(sources[:num])))
        num_kept += num
    return kept


def _origin(source: str, origins: dict[str, list[str]]) -> str:
    """The host's block that a source is, or is a copy of: `layer1.0+2` may be a copy that is not kept."""
    block, _, number = source.partition("+")
    return origins[block][int(number) - 1] if number else block


def _first_modules(recipe: Sequence[Graft], fraction: float, num_macs: Sequence[int]) -> list[Graft]:
    """The grafts without sources that grew first, at least one and not all."""
    modules = [(graft, macs) for graft, macs in zip(recipe, num_macs, strict=True) if not graft.sources]
    wanted = fraction * sum(macs for _, macs in modules)
    num = min(range(1, len(modules)), key=lambda k: abs(sum(macs for _, macs in modules[:k]) - wanted), default=0)
    return [graft for graft, _ in modules[:num]]
