"""What tells two networks apart, in a few bytes."""

from __future__ import annotations

import torch

from esper.kasmina import MorphableModel

__all__ = ["fingerprint"]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(model: MorphableModel) -> dict[str, object]:
    """State of every seed, recipe entry of every kernel, and a checksum of the bits of every parameter, by name.

    Batch-norm statistics are left out: each process has its own. Reads the device once.
    """
    named = list(model.named_parameters())
    checksums = torch.stack([p.detach().view(_INTEGERS[p.element_size()]).sum(dtype=torch.int64) for _, p in named])
    seeds: dict[str, object] = {f"seed at {slot.site.name}": str(slot.state) for slot in model.all_slots()}
    kernels = {f"kernel {graft.graft_id}": str(graft) for graft in model.recipe}
    return seeds | kernels | dict(zip((name for name, _ in named), checksums.tolist(), strict=True))
