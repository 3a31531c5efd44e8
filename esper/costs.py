"""What networks and training cost: parameters, multiply-accumulates (MACs) and FLOPs.

The convention of this package: one MAC is two FLOPs, and a backward pass costs two forward passes, so that a training
step costs three. What a network with frozen parameters skips of that is measured.
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
    from torch import Tensor, nn

__all__ = ["Cost", "Ledger", "count", "counting_macs", "flops", "skipped_macs", "training_macs"]

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


def training_macs(num_examples: int, num_macs: int, *, skipped: int = 0) -> int:
    """MACs of training on so many examples, forward and backward.

    Args:
        num_examples: how many.
        num_macs: MACs of a forward pass of one example.
        skipped: MACs that its backward pass does without; see `skipped_macs`.
    """
    return num_examples * (_FORWARDS_PER_STEP * num_macs - skipped)


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
        skipped_macs: what training steps did without, as parameters are frozen; not part of `train_macs`.
    """

    train_macs: int = 0
    discarded_macs: int = 0
    scoring_macs: int = 0
    forking_macs: int = 0
    incubation_macs: int = 0
    judging_macs: int = 0
    skipped_macs: int = 0

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
        forward_macs = (self.train_macs + self.skipped_macs) // _FORWARDS_PER_STEP
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

    The module runs one example of ones in eval mode and is left as it was. A module on the meta device is counted
    without memory or computation.

    Args:
        module: what to count.
        in_shape: shape of an example.
        dtype: of its input; None: that of the parameters.
    """
    with _evaluating(module), counting_macs() as macs:
        module(_ones(module, in_shape, dtype))
    return Cost(num_parameters=sum(p.numel() for p in module.parameters()), num_macs=macs())


def skipped_macs(module: nn.Module, in_shape: tuple[int, ...], *, dtype: torch.dtype | None = None) -> int:
    """MACs that the backward pass of one example does without, as parameters are frozen; 0 if none are.

    Frozen layers have no gradients of weights, and those before the first trainable parameter none at all: neither,
    then, does that parameter's layer send one on. Measured in a backward pass, in eval mode; gradients are left alone.
    A backward pass that costs more than two forward passes, as it recomputes activations, skips at least nothing.

    Args:
        module: gives one tensor.
        in_shape, dtype: see `count`.
    """
    import torch

    trained = [p for p in module.parameters() if p.requires_grad]
    if len(trained) == sum(1 for _ in module.parameters()):
        return 0
    with _evaluating(module), _unfused_rnns(), counting_macs(with_gradients=True) as macs:
        output = module(_ones(module, in_shape, dtype))
        forward = macs()
        if output.requires_grad:
            torch.autograd.grad(output.sum(), trained, allow_unused=True)
    return max(_FORWARDS_PER_STEP * forward - macs(), 0)


def _ones(module: nn.Module, in_shape: tuple[int, ...], dtype: torch.dtype | None) -> Tensor:
    """One example. Not zeros: as ids of tokens they are often padding, which may cost nothing."""
    import torch

    reference = next(itertools.chain(module.parameters(), module.buffers()), torch.zeros(()))
    return torch.ones(1, *in_shape, device=reference.device, dtype=dtype or reference.dtype)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for m, training in modes:
            m.training = training


@contextmanager
def _unfused_rnns() -> Iterator[None]:
    """Context manager: recurrent layers run step by step, as the fused ones have no backward pass in eval mode."""
    from torch.backends import cudnn, mkldnn

    before = cudnn.enabled, mkldnn.enabled
    try:
        cudnn.enabled, mkldnn.enabled = False, False  # type: ignore[assignment]
        yield
    finally:
        cudnn.enabled, mkldnn.enabled = before


@contextmanager
def counting_macs(*, with_gradients: bool = False) -> Iterator[Callable[[], int]]:
    """Context manager: gives a function that returns the MACs so far."""
    import torch  # here, because reports use this file and need no torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from esper.mac_counter import FlopCounter

    counter = FlopCounter(_uncounted())
    # Fused kernels of attention, and those of nn.MultiheadAttention and nn.TransformerEncoderLayer in eval mode, would
    # count as nothing. The math backend is counted alike on every device.
    is_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.set_grad_enabled(with_gradients), sdpa_kernel(SDPBackend.MATH), counter:
            yield lambda: counter.total() // _FLOPS_PER_MAC
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fast)


def _uncounted() -> dict[Any, Callable[..., int]]:
    """Formulas for operations that PyTorch's counter leaves out: fused recurrent layers and `nn.Bilinear`."""
    import torch

    def rnn_layer(x: Shape, weight: Shape, hidden_weight: Shape, *_: Any, **__: Any) -> int:
        return _FLOPS_PER_MAC * math.prod(x[:-1]) * (math.prod(weight) + math.prod(hidden_weight))

    def rnn(x: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
        return _FLOPS_PER_MAC * math.prod(x[:-1]) * sum(math.prod(shape) for shape in weights if len(shape) > 1)

    def lstm_mps(x: Shape, _: Any, weights: Sequence[Shape], *__: Any, **___: Any) -> int:
        return rnn(x, weights)

    def lstm_mps_backward(*args: Any, **_: Any) -> int:
        """Of inputs and weights, all at once; that of the others is counted step by step, see `_unfused_rnns`."""
        return 2 * rnn(args[5], args[8])

    def trilinear(*args: Any, **_: Any) -> int:
        """Each argument's new dimensions come after the three arguments; the product has all of them."""
        shapes = [list(shape) for shape in args[:3]]
        for shape, new in zip(shapes, args[3:6], strict=True):
            for dimension in sorted(new):
                shape.insert(dimension, 1)
        return int(_FLOPS_PER_MAC * math.prod(map(max, *shapes)))

    ops = torch.ops.aten
    return {
        ops.mkldnn_rnn_layer: rnn_layer,
        ops._cudnn_rnn: rnn,
        ops.miopen_rnn: rnn,
        ops._lstm_mps: lstm_mps,
        ops.lstm_mps_backward: lstm_mps_backward,
        ops._trilinear: trilinear,
    }
