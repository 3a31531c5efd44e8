"""Training a module before it joins the host, and finding how much of it to let in.

The host only lends its activations and gradients: it stays bit-identical, its statistics included. Both ways cost a
forward and a backward pass of the host a step. A pilot found no incubation better than simply inserting with a gain of
0.5 and training jointly; they are here to be compared with that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

from esper.kasmina import MorphableModel, SeedSlot
from esper.kasmina.modes import preserved_buffers
from esper.tolaria.evaluate import evaluate

__all__ = ["ALPHAS", "incubate", "try_alphas"]

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Blend weights tried by `try_alphas`."""

_REACH = 0.1
"""`fit`: size of the wanted output, relative to the activations it is added to (root mean squares)."""


def incubate(
    model: MorphableModel,
    slot: SeedSlot,
    images: Tensor,
    labels: Tensor,
    *,
    method: str,
    autocast: AbstractContextManager[object],
) -> None:
    """Set the gradients of a slot's live kernel from one training batch; nothing else changes but its statistics.

    `fit` minimises <g, f(x)> + |f(x)|² / (2 eta), with g the host's gradient at the site: without the second term the
    objective has no minimum. That is, up to a constant and a factor, |f(x) + eta g|², and eta is chosen for each batch
    so that the wanted output has a tenth of the activations' size. `shadow` is the loss of the whole network with the
    kernel added in full.

    Args:
        model: the network, in training mode.
        slot: where the kernel stands.
        images: training images (N, C, H, W), normalised.
        labels: their classes (N,).
        method: fit or shadow.
        autocast: number format of the forward passes.
    """
    kernel = slot.kernel(slot.live_graft)
    devices = [images.device] if images.is_cuda else []
    with preserved_buffers(model, exclude=kernel), torch.random.fork_rng(devices=devices):
        loss = (_fit if method == "fit" else _shadow)(model, slot, images, labels, autocast)
        parameters = list(kernel.parameters())
        for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.grad = gradient


def try_alphas(
    model: MorphableModel, slot: SeedSlot, batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]
) -> dict[float, float]:
    """Mean loss of the network with the live kernel's output scaled by each of `ALPHAS`, in eval mode."""
    kernel = slot.kernel(slot.live_graft)
    saved = [p.detach().clone() for p in kernel.parameters()]
    losses = {}
    for alpha in ALPHAS:
        kernel.scale_output(alpha)
        with slot.live_kernel_replaced(kernel.combine):
            losses[alpha], _ = evaluate(model, batches())
        with torch.no_grad():
            for p, value in zip(kernel.parameters(), saved, strict=True):
                p.copy_(value)
    return losses


def _fit(
    model: MorphableModel,
    slot: SeedSlot,
    images: Tensor,
    labels: Tensor,
    autocast: AbstractContextManager[object],
) -> Tensor:
    seen: list[Tensor] = []

    def tap(x: Tensor, y: Tensor) -> Tensor:
        tapped = y.clone()  # a copy each: what follows may write into the tensor that it gets
        seen[:] = [x.detach(), tapped]
        return tapped.clone()

    with autocast:
        with slot.live_kernel_replaced(tap):
            host_loss = F.cross_entropy(model(images), labels)
        x, y = seen
        (gradient,) = torch.autograd.grad(host_loss, y)
        size = _rms(y.detach())
        wanted = -_REACH * size / _rms(gradient) * gradient.float()
        output = slot.kernel(slot.live_graft)(x).float()
    loss = ((output - wanted) / size).square().mean()
    assert isinstance(loss, Tensor)
    return loss


def _shadow(
    model: MorphableModel,
    slot: SeedSlot,
    images: Tensor,
    labels: Tensor,
    autocast: AbstractContextManager[object],
) -> Tensor:
    with autocast, slot.live_kernel_replaced(slot.kernel(slot.live_graft).combine):
        return F.cross_entropy(model(images), labels)


def _rms(x: Tensor) -> Tensor:
    return x.float().square().mean().sqrt().clamp(min=1e-12)
