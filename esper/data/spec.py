"""Shapes and types of the inputs and outputs that a dataset requires of a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["DataSpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """Inputs and outputs of a network for a dataset.

    Attributes:
        inputs: shape of one example: (C, H, W) of images, (T,) of token ids, (D,) of rows.
        dtype: of the inputs: float32, or int64 for token ids.
        num_outputs: classes, size of the vocabulary, or numbers to predict.
        output_names: of classes or numbers; empty: unnamed.
        token_bytes: bytes that each id of the vocabulary stands for; empty: one.
    """

    inputs: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    num_outputs: int
    output_names: tuple[str, ...] = ()
    token_bytes: tuple[int, ...] = ()
