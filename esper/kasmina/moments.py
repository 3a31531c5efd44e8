"""Second moments of a site's input, of what feeds its present module, and of the loss's gradient, and scores of them.

With x the input of a kernel, g the gradient of an image's loss at the site's output and h the input of the last linear
map of the module that stands there, all at single positions (1×1 taps), and E the mean over images of the sum over
positions:

- M = E[g xᵀ] is the gradient of a zero-weight 1×1 convolution on x (GradMax, arXiv:2201.05125);
- G H⁻¹ h, with G = E[g hᵀ] and H = E[h hᵀ], is the part of g that the module can reach by changing that map;
- M⊥ = E[(g - G H⁻¹ h) xᵀ] = M - G H⁻¹ E[h xᵀ] is what remains for something new (TINY, arXiv:2405.19816);
- s = tr(M⊥ A⁻¹ M⊥ᵀ), with A = E[x xᵀ], is the square of the loss's first-order drop per unit of output, for the best
  1×1 convolution P on x with E|P x|² = 1: it does not depend on the scale of x.

A matrix estimated from noise alone has a norm above 0. So images are dealt to groups, M⊥ is estimated in each, and s is
the mean of tr(M⊥ᵢ A⁻¹ M⊥ⱼᵀ) over pairs of different groups: 0 on average when g is independent of x and h.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "NUM_GROUPS",
    "Dealt",
    "Moments",
    "Term",
    "cross_fitted",
    "deal",
    "root_of",
    "terms",
    "unreachable",
    "whitened",
]

NUM_GROUPS = 8
"""Groups that images are dealt to, in turn."""

Term = tuple[Any, ...]
"""What is summed over images and positions, of tensors by name: `("each", a, b)` a bᵀ in each group, `("all", a, b)`
a bᵀ, `("sum", a)` a, `("squares", a)` ‖a‖²."""

_RIDGE = 1e-3
"""What is added to the diagonal of a covariance before it is inverted, relative to its mean diagonal entry."""

_POSITIONS = 1024
"""Positions that one matrix product goes over, or twice as many as it has channels, where a group has so many: fewer
would write more than they read, and many more would leave a GPU idle where channels are few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt:
    """The images of a batch in the order of their groups, as many to each: where one lacks an image, another stands in.

    Attributes:
        index: which image of the batch stands there, (N',), N' a multiple of `NUM_GROUPS`.
        is_real: whether it does so as itself and not as a stand-in, which must not count, (N',).
        num_images: images in the batch.
    """

    index: Tensor
    is_real: Tensor
    num_images: int

    @property
    def is_full(self) -> bool:
        """Whether there are no stand-ins."""
        return len(self.index) == self.num_images


def deal(num_images: int, *, first: int, device: torch.device) -> Dealt:
    """Deal the images of a batch to groups.

    Args:
        num_images: images in the batch, one or more.
        first: images dealt before.
        device: where the images are.
    """
    first %= NUM_GROUPS
    per_group = -(-(first + num_images) // NUM_GROUPS)
    places = torch.arange(per_group * NUM_GROUPS, device=device).view(per_group, NUM_GROUPS).T.flatten() - first
    index = places.clamp(0, num_images - 1)
    return Dealt(index=index, is_real=index == places, num_images=num_images)


def terms(*, g: Hashable, x: Hashable, h: Hashable | None) -> list[Term]:
    """What `Moments.score` needs; the names are those of the module, and h is None where there is none."""
    needed: list[Term] = [("each", g, x), ("all", x, x)]
    return needed if h is None else [*needed, ("each", g, h), ("all", h, h), ("all", h, x)]


class Moments:
    """Running sums of all sites, on the device: what several of them read has one name and is summed once.

    Attributes:
        num_images: images taken in.
        num_positions: positions of each tensor taken in, over all images.
    """

    def __init__(self) -> None:
        self.num_images = 0
        self.num_positions: dict[Hashable, int] = {}
        self._sums: dict[Term, Tensor] = {}
        self._roots: dict[Hashable, Tensor] = {}

    @torch.no_grad()
    def add(self, tensors: Mapping[Hashable, Tensor], wanted: Iterable[Term], dealt: Dealt) -> None:
        """Take in some images.

        Args:
            tensors: by name, (N', C, H, W), their images in the order of `dealt`; two that are multiplied have the same
                H and W. Free of copies where memory is channels-last.
            wanted: what to sum of them, without repetition; the same for every batch.
            dealt: that order, `first` being the images taken in so far.
        """
        flat = {name: tensor.float().permute(0, 2, 3, 1).flatten(1, 2) for name, tensor in tensors.items()}
        if not dealt.is_full:
            flat = {name: x.where(dealt.is_real[:, None, None], 0.0) for name, x in flat.items()}
        for name, x in flat.items():
            self.num_positions[name] = self.num_positions.get(name, 0) + dealt.num_images * x.shape[1]
        for term in wanted:
            value = _summed(term, flat)
            if term in self._sums:
                self._sums[term] += value
            else:
                self._sums[term] = value.double()  # sums over a whole split
        self.num_images += dealt.num_images

    def total(self, term: Term) -> Tensor:
        """Sum over all images, float64: (K, A, B) for `each`, K groups having images; (A, B) for `all`; (A,); ()."""
        return self._sums[term]

    def plain(self, *, g: Hashable, x: Hashable) -> Tensor:
        """‖M‖²_F: the first-order drop of the mean loss per squared step of a 1×1 convolution, 0-dim."""
        return (self._sums["each", g, x].sum(0) / self.num_images).square().sum()

    def gradient_norm(self, g: Hashable) -> Tensor:
        """Norm of one image's gradient at a site's output, root mean square over images, 0-dim."""
        return (self._sums["squares", g] / self.num_images).sqrt()

    def score(self, *, g: Hashable, x: Hashable, h: Hashable | None) -> Tensor:
        """The score s and its standard error, (2,); see the module. Needs an image in at least three groups."""
        beyond = self._in_each_group(g, x)
        if h is not None:
            hx = self._sums["all", h, x] / self.num_images
            beyond = unreachable(beyond, self._in_each_group(g, h), hx, root=self._root(h))
        return cross_fitted(whitened(beyond, root=self._root(x)))

    def _in_each_group(self, a: Hashable, b: Hashable) -> Tensor:
        """E[a bᵀ] of each group that has images."""
        sums = self._sums["each", a, b][: self.num_images]
        last = torch.arange(NUM_GROUPS, device=sums.device)[: self.num_images] - (NUM_GROUPS - 1)
        return sums / ((self.num_images - last) // NUM_GROUPS)[:, None, None]

    def _root(self, x: Hashable) -> Tensor:
        if x not in self._roots:
            self._roots[x] = root_of(self._sums["all", x, x] / self.num_images)
        return self._roots[x]


def _summed(term: Term, flat: Mapping[Hashable, Tensor]) -> Tensor:
    """A term over the images of a batch, float32, of tensors (N', H·W, C)."""
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
    """aᵀ b over parts of a group, (NUM_GROUPS · parts, A, B), of a (N', P, A) and b (N', P, B)."""
    per_group, positions = len(a) // NUM_GROUPS, a.shape[1]
    enough = max(_POSITIONS, 2 * max(a.shape[2], b.shape[2]))
    images = next((n for n in range(1, per_group) if per_group % n == 0 and n * positions >= enough), per_group)
    a, b = (x.reshape(len(x) // images, images * positions, x.shape[2]) for x in (a, b))
    return a.mT @ b


def unreachable(gx: Tensor, gh: Tensor, hx: Tensor, *, root: Tensor) -> Tensor:
    """M⊥ = E[g xᵀ] - E[g hᵀ] E[h hᵀ]⁻¹ E[h xᵀ].

    Args:
        gx: E[g xᵀ], (…, C', C).
        gh: E[g hᵀ], (…, C', D).
        hx: E[h xᵀ], (D, C).
        root: Cholesky factor of E[h hᵀ], (D, D).
    """
    beyond = gx - gh @ torch.cholesky_solve(hx, root)
    assert isinstance(beyond, Tensor)
    return beyond


def whitened(m: Tensor, *, root: Tensor) -> Tensor:
    """M L⁻ᵀ, so that its squared norm is tr(M A⁻¹ Mᵀ).

    Args:
        m: (…, C', C).
        root: Cholesky factor L of the input's covariance A = L Lᵀ, (C, C).
    """
    solved: Tensor = torch.linalg.solve_triangular(root, m.flatten(0, -2).mT, upper=False)
    return solved.mT.reshape(m.shape)


def cross_fitted(parts: Tensor) -> Tensor:
    """Squared norm of what independent estimates have in common, without the bias of their noise.

    Args:
        parts: estimates of one matrix from K independent groups of data, (K, …), K >= 3.

    Returns:
        Mean of <partᵢ, partⱼ> over i ≠ j, and its standard error by the jackknife over groups, which where they have
        nothing in common is √2 too large; (2,).
    """
    k = len(parts)
    products = parts.flatten(1) @ parts.flatten(1).T
    off = products - products.diag().diag()
    total = off.sum()
    score = total / (k * (k - 1))
    without = (total - 2 * off.sum(1)) / ((k - 1) * (k - 2))
    error = ((without - without.mean()).square().sum() * (k - 1) / k).sqrt()
    return torch.stack([score, error])


def root_of(covariance: Tensor) -> Tensor:
    """Cholesky factor, with a ridge that keeps dead channels from dividing by 0."""
    ridge = _RIDGE * covariance.diagonal().mean() + torch.finfo(covariance.dtype).tiny ** 0.5
    factor: Tensor = torch.linalg.cholesky(covariance + ridge.expand(len(covariance)).diag())
    return factor
