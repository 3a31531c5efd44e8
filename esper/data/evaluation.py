"""Batches of a whole split, as validation, verdicts and tests read them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from esper.data.images import ImageSet
from esper.data.loader import Preprocess
from esper.data.pool import DecodePool
from esper.data.spec import DataSpec
from esper.data.splits import Split
from esper.data.stream import stream_batches
from esper.data.tokens import TokenSet

__all__ = ["batch_size", "evaluation_batches"]

_BATCH = 512
_PIXELS = _BATCH * 96 * 96
"""Limit for scoring, which keeps activations in float32: about 10 GB for a ResNet-50."""
_LOGITS = 2**28
"""Limit for text, whose logits are float32: 1 GB."""


def evaluation_batches(
    split: Split, spec: DataSpec, *, prepare: Preprocess, pool: DecodePool, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """A pass over a split, without augmentation.

    Args:
        split: images, rows or tokens.
        spec: of the network that reads them.
        prepare: converts images to network input.
        pool: decodes files.
        device: destination of the batches.
    """
    size = batch_size(spec)
    if isinstance(split, TokenSet):
        return split.batches(size, device)
    if isinstance(split, ImageSet):
        return prepare.batches(split, size)
    return stream_batches(split, size, prepare=prepare, pool=pool, device=device)


def batch_size(spec: DataSpec) -> int:
    """512 examples, or fewer if they are large."""
    if spec.dtype == torch.int64:
        return min(_BATCH, max(1, _LOGITS // (spec.inputs[0] * spec.num_outputs)))
    return min(_BATCH, max(1, _PIXELS // math.prod(spec.inputs[1:])))
