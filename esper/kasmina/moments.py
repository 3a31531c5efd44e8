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

import torch
from torch import Tensor

__all__ = ["NUM_GROUPS", "Moments", "cross_fitted", "unreachable", "whitened"]

NUM_GROUPS = 8
"""Groups that images are dealt to, in turn."""

_RIDGE = 1e-3
"""What is added to the diagonal of a covariance before it is inverted, relative to its mean diagonal entry."""


class Moments:
    """Running sums of one site, on the device.

    Args:
        num_out: channels of the site's output.
        num_in: channels of the kernel's input.
        num_features: channels of what feeds the present module's last linear map; 0: there is none.
        device: where to sum.
    """

    def __init__(self, num_out: int, num_in: int, num_features: int, *, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.num_images = zeros(NUM_GROUPS)
        self.gx = zeros(NUM_GROUPS, num_out, num_in)
        self.gh = zeros(NUM_GROUPS, num_out, num_features)
        self.xx, self.hh, self.hx = (
            zeros(num_in, num_in),
            zeros(num_features, num_features),
            zeros(num_features, num_in),
        )
        self.gg = torch.zeros((), dtype=torch.float64, device=device)
        self._dealt = 0

    def add(self, g: Tensor, x: Tensor, h: Tensor | None) -> None:
        """Take in some images.

        Args:
            g: gradient of each image's own loss, (N, C', H, W).
            x: the kernel's input at the same positions, (N, C, H, W).
            h: what feeds the present module's last linear map there, (N, D, H, W); None: there is none.
        """
        g, x = _by_image(g), _by_image(x)
        h = _by_image(h) if h is not None else x[..., :0]
        for k in range(NUM_GROUPS):
            mine = slice((k - self._dealt) % NUM_GROUPS, None, NUM_GROUPS)
            gradient = g[mine].flatten(0, 1).T
            self.num_images[k] += len(g[mine])
            self.gx[k] += gradient @ x[mine].flatten(0, 1)
            self.gh[k] += gradient @ h[mine].flatten(0, 1)
        x, h = x.flatten(0, 1), h.flatten(0, 1)
        self.xx += x.T @ x
        self.hh += h.T @ h
        self.hx += h.T @ x
        self.gg += g.square().sum()
        self._dealt += len(g)

    @property
    def total_images(self) -> Tensor:
        """Images taken in, 0-dim."""
        return self.num_images.sum()

    def plain(self) -> float:
        """‖M‖²_F: the first-order drop of the mean loss per squared step of a 1×1 convolution."""
        return float((self.gx.sum(0) / self.total_images).square().sum())

    def gradient_norm(self) -> float:
        """Norm of one image's gradient at the site's output, root mean square over images."""
        return float((self.gg / self.total_images).sqrt())

    def score(self) -> tuple[float, float]:
        """The score s and its standard error; see the module. Needs an image in at least three groups."""
        counted = self.num_images > 0
        images = self.num_images[counted, None, None]
        gx, gh = self.gx[counted] / images, self.gh[counted] / images
        total = self.total_images
        beyond = unreachable(gx, gh, self.hh / total, self.hx / total)
        return cross_fitted(whitened(beyond, self.xx / total))


def unreachable(gx: Tensor, gh: Tensor, hh: Tensor, hx: Tensor) -> Tensor:
    """M⊥ = E[g xᵀ] - E[g hᵀ] E[h hᵀ]⁻¹ E[h xᵀ].

    Args:
        gx: E[g xᵀ], (…, C', C).
        gh: E[g hᵀ], (…, C', D).
        hh: E[h hᵀ], (D, D).
        hx: E[h xᵀ], (D, C).
    """
    if not len(hh):
        return gx
    beyond = gx - gh @ torch.cholesky_solve(hx, _root(hh))
    assert isinstance(beyond, Tensor)
    return beyond


def whitened(m: Tensor, a: Tensor) -> Tensor:
    """M L⁻ᵀ with A = L Lᵀ, so that its squared norm is tr(M A⁻¹ Mᵀ).

    Args:
        m: (…, C', C).
        a: covariance of the input, (C, C).
    """
    solved: Tensor = torch.linalg.solve_triangular(_root(a), m.mT, upper=False)
    return solved.mT


def cross_fitted(parts: Tensor) -> tuple[float, float]:
    """Squared norm of what independent estimates have in common, without the bias of their noise.

    Args:
        parts: estimates of one matrix from K independent groups of data, (K, …), K >= 3.

    Returns:
        Mean of <partᵢ, partⱼ> over i ≠ j, and its standard error by the jackknife over groups, which where they have
        nothing in common is √2 too large.
    """
    k = len(parts)
    products = parts.flatten(1) @ parts.flatten(1).T
    off = products - products.diag().diag()
    total = off.sum()
    score = total / (k * (k - 1))
    without = (total - 2 * off.sum(1)) / ((k - 1) * (k - 2))
    error = ((without - without.mean()).square().sum() * (k - 1) / k).sqrt()
    score_and_error = torch.stack([score, error]).tolist()
    return score_and_error[0], score_and_error[1]


def _root(covariance: Tensor) -> Tensor:
    """Cholesky factor, with a ridge that keeps dead channels from dividing by 0."""
    ridge = _RIDGE * covariance.diagonal().mean() + torch.finfo(covariance.dtype).tiny ** 0.5
    root: Tensor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance)).to(covariance))
    return root


def _by_image(x: Tensor) -> Tensor:
    """(N, C, H, W) to float32 (N, H·W, C)."""
    return x.detach().float().flatten(2).mT
