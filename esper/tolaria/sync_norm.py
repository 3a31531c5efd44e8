"""Batch norm over the rows of all ranks.

Inside `SynchronisedNorms`, which the training step alone enters, every batch norm that normalises by its batch does so
by the batch of all ranks: the host's, those of timm, and those of modules that grow. Outside nothing changes, so rank 0
can score, judge and re-estimate statistics alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules._functions import SyncBatchNorm
from torch.overrides import TorchFunctionMode

from esper.tolaria.ranks import Ranks

__all__ = ["SynchronisedNorms"]


class SynchronisedNorms(TorchFunctionMode):
    """Context manager: batch norms in training mode use mean and variance over all ranks, which must all be in it."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks

    def __torch_function__(
        self,
        func: Callable[..., Any],
        _types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        return self._batch_norm(*args, **kwargs) if func is F.batch_norm else func(*args, **kwargs)

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """`F.batch_norm`, synchronised if `training`."""
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        statistics = (running_mean, running_var)
        if input.is_cuda:  # PyTorch's kernels for it are for GPUs alone
            group, size = dist.group.WORLD, self._ranks.size
            output = SyncBatchNorm.apply(input, weight, bias, *statistics, eps, momentum, group, size)
        else:
            output = _Normalise.apply(input, self._ranks, *statistics, momentum, eps)
            shape = (1, -1, *[1] * (input.ndim - 2))
            output = output if weight is None else output * weight.view(shape)
            output = output if bias is None else output + bias.view(shape)
        assert isinstance(output, Tensor)
        return output


class _Normalise(torch.autograd.Function):
    """Standardise each channel over the rows of all ranks, (N, C, ...), and update the running statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        ranks: Ranks,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        size = x.new_tensor([x.numel() / x.shape[1]], dtype=torch.float64)
        sums = torch.cat([_by_channel(x), _by_channel(x.double().square()), size])
        ranks.all_reduce_sum([sums])
        total, squares = sums[:-1].chunk(2)
        num = sums[-1]
        mean = total / num
        var = (squares / num - mean.square()).clamp(min=0)
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * num / (num - 1)).to(running_var.dtype), momentum)
        shape = (1, -1, *[1] * (x.ndim - 2))
        scale = (var + eps).rsqrt().view(shape)
        output = ((x - mean.view(shape)) * scale).to(x.dtype)
        ctx.save_for_backward(output, scale, num)
        ctx.ranks = ranks
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        output, scale, num = ctx.saved_tensors
        sums = torch.cat([_by_channel(gradient), _by_channel(gradient.double() * output)])
        ctx.ranks.all_reduce_sum([sums])
        constant, slope = (part.view(scale.shape) / num for part in sums.chunk(2))
        return ((gradient - constant - output * slope) * scale).to(gradient.dtype), None, None, None, None, None


def _by_channel(x: Tensor) -> Tensor:
    """Sum over all but the channels, float64 (C,)."""
    return x.double().sum([0, *range(2, x.ndim)])
