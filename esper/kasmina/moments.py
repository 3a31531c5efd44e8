"""Second moments of activations and gradients, and the score of a site computed from them.

Let x be the input of a kernel, g the gradient of an image's loss with respect to the site's output and h the input of
the last linear map of the existing module, all at single positions, and E the mean over images of the sum over
positions. Then

- M = E[g xᵀ] is the gradient of a zero-weight 1×1 convolution on x (GradMax, arXiv:2201.05125);
- G H⁻¹ h, with G = E[g hᵀ] and H = E[h hᵀ], is the part of g that the module can reach by changing that map;
- M⊥ = E[(g - G H⁻¹ h) xᵀ] = M - G H⁻¹ E[h xᵀ] is the part that only a new module can reach (TINY, arXiv:2405.19816);
- s = tr(M⊥ A⁻¹ M⊥ᵀ), with A = E[x xᵀ], is the square of the loss's first-order drop per unit of output, for the best
  1×1 convolution P on x with E|P x|² = 1. It does not depend on the scale of x.

A matrix estimated from pure noise has a positive norm. Therefore images are split into groups, M⊥ is estimated in each,
and s is the mean of tr(M⊥ᵢ A⁻¹ M⊥ⱼᵀ) over pairs i ≠ j: its expectation is 0 if g is independent of x and h.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from esper.devices import in_double

__all__ = [
    "NUM_GROUPS",
    "GroupedBatch",
    "Moments",
    "Term",
    "cholesky_factor",
    "cross_fitted",
    "group_images",
    "score_terms",
    "unreachable",
    "whitened",
]

NUM_GROUPS = 8
"""Groups that images are assigned to, round-robin."""

Term = tuple[Any, ...]
"""A sum over images and positions of tensors given by name: `("each", a, b)` a bᵀ per group, `("all", a, b)` a bᵀ,
`("sum", a)` a, `("squares", a)` ‖a‖²."""

_RIDGE = 1e-3
"""Added to the diagonal of a covariance before it is inverted, relative to its mean diagonal entry."""

_POSITIONS = 1024
"""Minimum number of positions per matrix product (and at least twice the number of channels), if a group has as many:
with fewer, more is written than read; with many more, a GPU is idle where channels are few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedBatch:
    """The images of a batch sorted by group; groups are padded to one size by repeated images.

    Attributes:
        index: indices of images in the batch, (N',), N' a multiple of `NUM_GROUPS`.
        is_real: mask that is False for padding, (N',).
        num_images: images in the batch.
    """

    index: Tensor
    is_real: Tensor
    num_images: int

    @property
    def is_padded(self) -> bool:
        """Whether there is any padding."""
        return len(self.index) != self.num_images


def group_images(num_images: int, *, first: int, device: torch.device) -> GroupedBatch:
    """Assign the images of a batch to groups.

    Args:
        num_images: images in the batch, one or more.
        first: images in earlier batches.
        device: of the images.
    """
    first %= NUM_GROUPS
    per_group = -(-(first + num_images) // NUM_GROUPS)
    positions = torch.arange(per_group * NUM_GROUPS, device=device).view(per_group, NUM_GROUPS).T.flatten() - first
    index = positions.clamp(0, num_images - 1)
    return GroupedBatch(index=index, is_real=index == positions, num_images=num_images)


def score_terms(*, g: Hashable, x: Hashable, h: Hashable | None) -> list[Term]:
    """The terms that `Moments.score` needs, for the names of g, x and h; h is None for a module without linear map."""
    terms: list[Term] = [("each", g, x), ("all", x, x)]
    return terms if h is None else [*terms, ("each", g, h), ("all", h, h), ("all", h, x)]


class Moments:
    """Running sums for all sites; a tensor that several sites share has one name and is summed once.

    Attributes:
        num_images: images added.
        num_positions: positions added, by tensor, over all images.
    """

    def __init__(self) -> None:
        self.num_images = 0
        self.num_positions: dict[Hashable, int] = {}
        self._sums: dict[Term, Tensor] = {}
        self._factors: dict[Hashable, Tensor] = {}

    @torch.no_grad()
    def add(self, tensors: Mapping[Hashable, Tensor], terms: Iterable[Term], batch: GroupedBatch) -> None:
        """Add a batch to the sums.

        Args:
            tensors: by name, (N', C, H, W), (N', T, C) or (N', C), examples in the order of `batch`; tensors of one
                product have the same positions. Channels-last memory of images avoids copies.
            terms: terms to sum, without duplicates; the same for every batch.
            batch: from `group_images`, with `first` the images added so far.
        """
        flat = {name: _by_position(tensor.float()) for name, tensor in tensors.items()}
        if batch.is_padded:
            flat = {name: x.where(batch.is_real[:, None, None], 0.0) for name, x in flat.items()}
        for name, x in flat.items():
            self.num_positions[name] = self.num_positions.get(name, 0) + batch.num_images * x.shape[1]
        for term in terms:
            value = _batch_sum(term, flat)
            if term in self._sums:
                self._sums[term] += value.to(self._sums[term].device)
            else:
                self._sums[term] = in_double(value)  # float32 is too coarse for sums over a whole split
        self.num_images += batch.num_images

    def total(self, term: Term) -> Tensor:
        """Sum over all images, float64: (NUM_GROUPS, A, B) for `each`, (A, B) for `all`, (A,) or ()."""
        return self._sums[term]

    def plain(self, *, g: Hashable, x: Hashable) -> Tensor:
        """‖M‖²_F: the first-order drop of the mean loss per squared step of a 1×1 convolution, 0-dim."""
        return (self._sums["each", g, x].sum(0) / self.num_images).square().sum()

    def gradient_norm(self, g: Hashable) -> Tensor:
        """Norm of the gradient at a site's output, root mean square over images, 0-dim."""
        return (self._sums["squares", g] / self.num_images).sqrt()

    def score(self, *, g: Hashable, x: Hashable, h: Hashable | None) -> Tensor:
        """The score s and its standard error, (2,); see the module's docstring. Needs at least three images."""
        m = self._group_means(g, x)
        if h is not None:
            hx = self._sums["all", h, x] / self.num_images
            m = unreachable(m, self._group_means(g, h), hx, factor=self._factor(h))
        return cross_fitted(whitened(m, factor=self._factor(x)))

    def _group_means(self, a: Hashable, b: Hashable) -> Tensor:
        """E[a bᵀ] of each group that has images, (K, A, B)."""
        sums = self._sums["each", a, b][: self.num_images]
        last = torch.arange(NUM_GROUPS, device=sums.device)[: self.num_images] - (NUM_GROUPS - 1)
        return sums / ((self.num_images - last) // NUM_GROUPS)[:, None, None]

    def _factor(self, x: Hashable) -> Tensor:
        if x not in self._factors:
            self._factors[x] = cholesky_factor(self._sums["all", x, x] / self.num_images)
        return self._factors[x]


def _by_position(x: Tensor) -> Tensor:
    """(N, P, C), with P positions, of images (N, C, H, W), tokens (N, T, C), rows (N, C), or (N, C, …)."""
    if x.dim() < 4:
        return x if x.dim() == 3 else x[:, None]
    return x.movedim(1, -1).flatten(1, -2)


def _batch_sum(term: Term, flat: Mapping[Hashable, Tensor]) -> Tensor:
    """A term's sum over a batch, float32, of tensors (N', H·W, C)."""
    match term:
        case "each", a, b:
            products = _products(flat[a], flat[b])
            return products.view(NUM_GROUPS, -1, *products.shape[1:]).sum(1)
        case "all", a, b:
            return _products(flat[a], flat[b]).sum(0)
        case "sum", a:
            return flat[a].sum((0, 1))
        case "squares", a:
            norms: Tensor = torch.linalg.vector_norm(flat[a], dim=(1, 2))
            return norms.square().sum()
        case _:
            raise AssertionError(term)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ b over equal parts of each group, (NUM_GROUPS · parts, A, B), of a (N', P, A) and b (N', P, B)."""
    per_group, positions = len(a) // NUM_GROUPS, a.shape[1]
    minimum = max(_POSITIONS, 2 * max(a.shape[2], b.shape[2]))
    images = next((n for n in range(1, per_group) if per_group % n == 0 and n * positions >= minimum), per_group)
    a, b = (x.reshape(len(x) // images, images * positions, x.shape[2]) for x in (a, b))
    return a.mT @ b


def unreachable(gx: Tensor, gh: Tensor, hx: Tensor, *, factor: Tensor) -> Tensor:
    """M⊥ = E[g xᵀ] - E[g hᵀ] E[h hᵀ]⁻¹ E[h xᵀ].

    Args:
        gx: E[g xᵀ], (…, C', C).
        gh: E[g hᵀ], (…, C', D).
        hx: E[h xᵀ], (D, C).
        factor: Cholesky factor of E[h hᵀ], (D, D).
    """
    remainder = gx - gh @ torch.cholesky_solve(hx, factor)
    assert isinstance(remainder, Tensor)
    return remainder


def whitened(m: Tensor, *, factor: Tensor) -> Tensor:
    """M L⁻ᵀ, whose squared norm is tr(M A⁻¹ Mᵀ).

    Args:
        m: (…, C', C).
        factor: Cholesky factor L of the input's covariance A = L Lᵀ, (C, C).
    """
    solved: Tensor = torch.linalg.solve_triangular(factor, m.flatten(0, -2).mT, upper=False)
    return solved.mT.reshape(m.shape)


def cross_fitted(estimates: Tensor) -> Tensor:
    """Unbiased squared norm of a matrix from independent noisy estimates of it.

    Args:
        estimates: from K independent groups of data, (K, …), K >= 3.

    Returns:
        Mean of <estimateᵢ, estimateⱼ> over i ≠ j, and its standard error by the jackknife over groups (√2 too large if
        the matrix is 0); (2,).
    """
    k = len(estimates)
    products = estimates.flatten(1) @ estimates.flatten(1).T
    off = products - products.diag().diag()
    total = off.sum()
    score = total / (k * (k - 1))
    without = (total - 2 * off.sum(1)) / ((k - 1) * (k - 2))
    error = ((without - without.mean()).square().sum() * (k - 1) / k).sqrt()
    return torch.stack([score, error])


def cholesky_factor(covariance: Tensor) -> Tensor:
    """Lower Cholesky factor of a covariance, (C, C), with a ridge for channels that are constantly 0."""
    ridge = _RIDGE * covariance.diagonal().mean() + torch.finfo(covariance.dtype).tiny ** 0.5
    factor: Tensor = torch.linalg.cholesky(covariance + ridge.expand(len(covariance)).diag())
    return factor
