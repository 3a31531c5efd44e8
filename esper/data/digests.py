"""The fingerprint of data in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from esper.images.fingerprint import Fingerprint, digest_of

__all__ = ["fingerprint_tensors"]


def fingerprint_tensors(parts: Mapping[str, Sequence[Tensor]]) -> Fingerprint:
    """The fingerprint of splits in memory: of each, tensors on the CPU whose first dimension counts its examples."""
    return Fingerprint(
        {name: (len(tensors[0]), "", digest_of(map(_bytes, tensors))) for name, tensors in parts.items()}
    )


def _bytes(tensor: Tensor) -> bytes:
    return f"{tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes()
