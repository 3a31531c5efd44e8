"""What networks and training cost: parameters, multiply-accumulates (MACs) and FLOPs.

The convention of this package: one MAC is two FLOPs, and a backward pass costs two forward passes, so that a training
step costs three.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Cost", "Ledger", "count", "counting_macs", "flops", "training_macs"]

Shape = tuple[int, ...]

_FORWARDS_PER_STEP = 3
_FLOPS_PER_MAC = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Size of a network: parameters, and MACs of a forward pass of one example."""

    num_parameters: int
    num_macs: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(num_parameters=self.num_parameters + other.num_parameters, num_macs=self.num_macs + other.num_macs)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(num_parameters=self.num_parameters - other.num_parameters, num_macs=self.num_macs - other.num_macs)


def training_macs(num_examples: int, num_macs: int) -> int:
    """MACs of training on so many examples, forward and backward; `num_macs`: a forward pass of one example."""
    return _FORWARDS_PER_STEP * num_examples * num_macs


def flops(macs: float) -> float:
    """MACs as floating-point operations."""
    return _FLOPS_PER_MAC * macs


@dataclass(kw_only=True)
class Ledger:
    """MACs that a run has spent so far, by purpose; whatever computes adds to it.

    Attributes:
        train_macs: training steps.
        discarded_macs: the part of `train_macs` that went into modules which were culled.
        scoring_macs: scoring sites.
        forking_macs: short forks, which choose between sites.
        incubation_macs: training modules before they join the host, and finding their output scale.
        judging_macs: judging modules, and re-estimating batch-norm statistics after a cull.
    """

    train_macs: int = 0
    discarded_macs: int = 0
    scoring_macs: int = 0
    forking_macs: int = 0
    incubation_macs: int = 0
    judging_macs: int = 0

    @property
    def growth_macs(self) -> int:
        """What only growing needs."""
        return self.scoring_macs + self.forking_macs + self.incubation_macs + self.judging_macs

    @property
    def total_macs(self) -> int:
        """Everything spent."""
        return self.train_macs + self.growth_macs

    def totals(self) -> dict[str, int]:
        """Everything spent, all its parts, and the sum of what only growing needs, by the result's keys."""
        forward_macs = self.train_macs // _FORWARDS_PER_STEP
        return {
            "total_macs": self.total_macs,
            "forward_macs": forward_macs,
            "backward_macs": self.train_macs - forward_macs,
            "scoring_macs": self.scoring_macs,
            "forking_macs": self.forking_macs,
            "incubation_macs": self.incubation_macs,
            "judging_macs": self.judging_macs,
            "train_macs": self.train_macs,
            "growth_macs": self.growth_macs,
            "discarded_macs": self.discarded_macs,
        }


def count(module: nn.Module, in_shape: tuple[int, ...], *, dtype: torch.dtype | None = None) -> Cost:
    """Count a module's parameters, and the MACs of its convolutions and matrix products; causal attention in full.

    The module runs one example of zeros in eval mode and is left as it was. A module on the meta device is counted
    without memory or computation.

    Args:
        module: what to count.
        in_shape: shape of an example.
        dtype: of its input; None: that of the parameters.
    """
    import torch  # here, because reports use this file and need no torch

    reference = next(itertools.chain(module.parameters(), module.buffers()), torch.zeros(()))
    modes = [(m, m.training) for m in module.modules()]
    try:
        module.eval()
        with counting_macs() as macs:
            module(torch.zeros(1, *in_shape, device=reference.device, dtype=dtype or reference.dtype))
    finally:
        for m, training in modes:
            m.training = training
    return Cost(num_parameters=sum(p.numel() for p in module.parameters()), num_macs=macs())


@contextmanager
def counting_macs() -> Iterator[Callable[[], int]]:
    """Context manager, without gradients: gives a function that returns the MACs so far."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from esper.mac_counter import FlopCounter

    counter = FlopCounter(_uncounted())
    # Fused kernels of attention, and those of nn.MultiheadAttention and nn.TransformerEncoderLayer in eval mode, would
    # count as nothing. The math backend is counted alike on every device.
    is_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            yield lambda: counter.total() // _FLOPS_PER_MAC
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fast)


def _uncounted() -> dict[Any, Callable[..., int]]:
    """Formulas for operations that PyTorch's counter leaves out: fused recurrent layers and `nn.Bilinear`."""
    import torch

    def rnn_layer(x: Shape, weight: Shape, hidden_weight: Shape, *_: Any, **__: Any) -> int:
        return _FLOPS_PER_MAC * math.prod(x[:-1]) * (math.prod(weight) + math.prod(hidden_weight))

    def cudnn_rnn(x: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
        return _FLOPS_PER_MAC * math.prod(x[:-1]) * sum(math.prod(shape) for shape in weights if len(shape) > 1)

    def bilinear(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
        return _FLOPS_PER_MAC * x[0] * math.prod(weight)

    ops = torch.ops.aten
    return {ops.mkldnn_rnn_layer: rnn_layer, ops._cudnn_rnn: cudnn_rnn, ops._trilinear: bilinear}
