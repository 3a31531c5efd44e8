"""Documents as token ids in one tensor, and the splits that share it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from esper import hanging

__all__ = ["TokenSet", "draw_groups", "token_set"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenSet:
    """The documents of a split, one after the other, in windows of `context` tokens.

    Window i reads the tokens from position `i * context` on, and predicts those one position later. The last window may
    be shorter. The tokens of all splits lie in one tensor; positions are mapped to it without reading the device.

    Attributes:
        tokens: ids of all documents of the dataset: uint8, or int32, (N,); on the device, or memory-mapped on the CPU.
        ends: where each run of neighbouring documents ends, in positions of the split: int64 (R,).
        shifts: index of each run's first token in `tokens`, minus its position: int64 (R,).
        context: tokens of a window.
        num_tokens: tokens in the split.
        windows: the windows that belong to it, ascending, int64 (W,), on the CPU; None: all.
        is_streamed: whether the tokens stay memory-mapped.
    """

    tokens: Tensor
    ends: Tensor
    shifts: Tensor
    context: int
    num_tokens: int
    windows: Tensor | None = None
    is_streamed: bool = False

    def __len__(self) -> int:
        return -(-(self.num_tokens - 1) // self.context) if self.windows is None else len(self.windows)

    def __getitem__(self, index: Tensor) -> TokenSet:
        """Some of the windows."""
        windows = torch.arange(len(self)) if self.windows is None else self.windows
        return dataclasses.replace(self, windows=windows[index])

    @property
    def shape(self) -> tuple[int]:
        """(T,) of a window."""
        return (self.context,)

    def placed(self, tokens: Tensor) -> TokenSet:
        """The split of the same tokens at another place."""
        device = tokens.device
        return dataclasses.replace(self, tokens=tokens, ends=self.ends.to(device), shifts=self.shifts.to(device))

    def read(self, starts: Tensor, length: int) -> Tensor:
        """So many tokens from each position on: int64 (B, length), on the device of the tokens."""
        positions = starts[:, None] + torch.arange(length, device=starts.device)
        run = torch.searchsorted(self.ends, positions, right=True)
        return self.tokens[positions + self.shifts[run]].long()

    def batches(self, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of all windows in order: inputs and targets int64 (B, T); a shorter last window comes alone."""
        windows = torch.arange(len(self)) if self.windows is None else self.windows
        num_full = (self.num_tokens - 1) // self.context
        for part in (windows[windows < num_full], windows[windows >= num_full]):
            for chunk in torch.split(part, batch_size) if len(part) else ():
                hanging.beat()
                starts = chunk * self.context
                length = min(self.context, self.num_tokens - 1 - int(starts[0]))
                read = self.read(starts.to(self.tokens.device), length + 1).to(device)
                yield read[:, :-1], read[:, 1:]


def token_set(tokens: Tensor, documents: Tensor, *, starts: Tensor, context: int, is_streamed: bool) -> TokenSet:
    """A split of these documents.

    Args:
        tokens: ids of all documents.
        documents: the documents of the split, ascending, int64 (D,).
        starts: where each document begins in `tokens`, and the end of the last one: int64.
        context: tokens of a window.
        is_streamed: see `TokenSet`.
    """
    begins, ends = starts[documents], starts[documents + 1]
    is_first = torch.ones(len(documents), dtype=torch.bool)
    is_first[1:] = documents[1:] != documents[:-1] + 1
    own_ends = (ends - begins).cumsum(0)
    firsts = is_first.nonzero()[:, 0]
    own_begins = torch.cat([own_ends.new_zeros(1), own_ends[firsts[1:] - 1]]) if len(documents) else own_ends
    return TokenSet(
        tokens=tokens,
        ends=torch.cat([own_begins[1:], own_ends[-1:]]),
        shifts=begins[firsts] - own_begins,
        context=context,
        num_tokens=int((ends - begins).sum()),
        is_streamed=is_streamed,
    )


def draw_groups(sizes: Sequence[int], share: float, generator: torch.Generator) -> tuple[list[int], list[int]]:
    """Draw groups at random that hold about a share of all tokens; returns those drawn and the others, ascending.

    A group is left out if it would exceed the share, so that a large one does not decide; of any, at least one is
    drawn.

    Args:
        sizes: tokens of each group.
        share: share of all tokens, in (0, 1).
        generator: random numbers.
    """
    order = torch.randperm(len(sizes), generator=generator).tolist()
    missing, drawn = share * sum(sizes), list[int]()
    for group in order:
        if sizes[group] <= missing:
            drawn.append(group)
            missing -= sizes[group]
    if order and not drawn:
        drawn = [min(order, key=lambda group: sizes[group])]
    return sorted(drawn), sorted(set(order) - set(drawn))
