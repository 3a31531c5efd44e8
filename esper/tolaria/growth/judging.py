"""The trial of a live kernel: paired losses with it and without it, on the judge split."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from esper.kasmina import MorphableModel, SeedSlot
from esper.kasmina.modes import preserved_buffers, reestimate_norms
from esper.tolaria.evaluate import example_losses

__all__ = ["paired_losses"]


def paired_losses(
    model: MorphableModel,
    slot: SeedSlot,
    *,
    judge_batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    norm_images: Callable[[], Iterable[Tensor]],
) -> tuple[Tensor, Tensor]:
    """Losses of the judge split's examples without and with the live kernel; the model stays bit-identical.

    Both arms get batch-norm statistics of their own from the same training images: statistics gathered with the
    kernel would make its absence look worse than it is. What remains overstated is co-adaptation: the host has
    trained with the kernel and not without.

    Returns:
        (loss off, loss on), float32 (N,) each.
    """
    with preserved_buffers(model):
        reestimate_norms(model, norm_images())
        with_kernel, _ = example_losses(model, judge_batches())
        with slot.live_kernel_disabled():
            reestimate_norms(model, norm_images())
            without, _ = example_losses(model, judge_batches())
    return without, with_kernel
