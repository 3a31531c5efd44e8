"""Where capacity is missing: a first-order score of every site, measured on held-out images.

For a site with kernel input x and loss gradient g at its output, M = E[g xᵀ] is the gradient of a zero-weight 1×1
convolution standing there; its squared Frobenius norm is the first-order drop of the loss per squared step of it.
Source: GradMax, arXiv:2201.05125, with the auxiliary layer read as a probe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.kasmina.model import MorphableModel
from esper.kasmina.sites import Site
from esper.urza.kernel import stride_between

__all__ = ["SiteScore", "health", "score_sites"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteScore:
    """What was measured at a site over all images.

    Attributes:
        score: ‖M‖²_F, with M the gradient of the mean loss.
        activation_variance: variance of the kernel's input over images, channels and positions.
        gradient_norm: norm of one image's gradient at the site's output, root mean square over images.
    """

    score: float
    activation_variance: float
    gradient_norm: float


class _Sums:
    """Running sums of one site, on the device."""

    def __init__(self, site: Site, device: torch.device) -> None:
        self.stride = stride_between(site.in_shape, site.out_shape)
        # float64: sums over a whole split, read back once.
        self.gradient = torch.zeros(site.out_shape[0], site.in_shape[0], dtype=torch.float64, device=device)
        self.moments = torch.zeros(3, dtype=torch.float64, device=device)  # of x: count, sum, sum of squares
        self.squared_norm = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, x: Tensor, g: Tensor) -> None:
        x, g = x.detach().float(), g.float()
        seen = x[..., :: self.stride, :: self.stride]
        self.gradient += torch.einsum("nohw,nihw->oi", g, seen)
        self.moments += torch.stack([x.new_tensor(float(x.numel())), x.sum(), x.square().sum()])
        self.squared_norm += g.square().sum()

    def score(self, num_images: int) -> SiteScore:
        count, total, squares = self.moments.tolist()
        return SiteScore(
            score=float((self.gradient / num_images).square().sum()),
            activation_variance=max(0.0, squares / count - (total / count) ** 2),
            # Per-image gradients here are of the summed loss, so no factor of the batch is left in them.
            gradient_norm=(float(self.squared_norm) / num_images) ** 0.5,
        )


def score_sites(model: MorphableModel, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, SiteScore]:
    """Score every site of a network in eval mode; parameters, gradients, buffers and modes stay as they are.

    Args:
        model: the network, grown or not.
        batches: images (N, C, H, W), normalised, and labels (N,).
    """
    sites = [slot.site for slot in model.all_slots()]
    device = next(model.parameters()).device
    sums = {site.name: _Sums(site, device) for site in sites}
    taps: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        model.host.get_submodule(block).register_forward_hook(_tap(taps, block))
        for block in dict.fromkeys(site.block for site in sites)
    ]
    was_training = model.training
    num_images = 0
    try:
        model.eval()
        for images, labels in batches:
            with torch.enable_grad():
                loss = F.cross_entropy(model(images), labels, reduction="sum")
                blocks = list(taps)
                gradients = torch.autograd.grad(loss, [taps[block][1] for block in blocks])
            by_block = dict(zip(blocks, gradients, strict=True))
            for site in sites:
                x, y = taps[site.block]
                sums[site.name].add(y if site.kind == "after" else x, by_block[site.block])
            taps.clear()
            num_images += len(labels)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return {name: total.score(num_images) for name, total in sums.items()}


def _tap(taps: dict[str, tuple[Tensor, Tensor]], block: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    # Registered last, so it sees the block's output with all that has grown there.
    def record(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        taps[block] = (args[0], output)

    return record


def health(scores: Sequence[tuple[Site, float]]) -> dict[str, float | None]:
    """Health of each site: min(1, median score of the other sites of its kind / its own score).

    1 is a site like the others or better off; 1/3 one whose score stands out threefold. A site without another of its
    kind to compare with has none.
    """
    result: dict[str, float | None] = {}
    for site, own in scores:
        others = [score for other, score in scores if other.kind == site.kind and other.name != site.name]
        if not others:
            result[site.name] = None
        elif own <= 0.0:
            result[site.name] = 1.0
        else:
            result[site.name] = min(1.0, median(others) / own)
    return result
