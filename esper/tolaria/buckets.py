"""Sums of gradients over ranks, in buckets that are summed while the backward pass goes on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from esper.errors import RankError
from esper.tolaria.ranks import Ranks

__all__ = ["GradientBuckets"]

_ALIGNMENT_BYTES = 16  # of each gradient, for vectorised kernels


class GradientBuckets:
    """Sum the gradients of a network over all ranks, bucket by bucket, in the order in which they become ready.

    The first step after `forget` records that order and sums after its backward pass; later ones may overlap. On CUDA
    the sums run on NCCL's stream, which forks from that of the backward pass and joins it in `reduce`, so that all of
    it can be captured in a CUDA graph. Gradients become views of the buckets, which saves copying them back.

    All ranks must use the same parameters in a step. Then collectives have one order, those of synchronised batch norms
    included: autograd runs equal graphs in equal order, in one thread a device, and buckets start in theirs. As the
    buckets depend on the network alone, a resumed run adds in the same order as one that never stopped.

    Not DistributedDataParallel: it sums the parameters that it was built with, so every growth would need a new
    wrapper, with eleven eager steps before it can be captured.

    Args:
        model: the network; between a change of its parameters and the next step `forget` must be called.
        ranks: the ranks.

    Attributes:
        bucket_bytes: size at which a bucket is full.
        outer_bytes: the same for the first bucket, so that it starts early, and the largest size of the last one, which
            nothing overlaps.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self.bucket_bytes = 25 * 2**20
        self.outer_bytes = 2**20
        self._model = model
        self._ranks = ranks
        self._buckets: list[_Bucket] = []
        self._is_overlapped = False
        self._ready: dict[nn.Parameter, None] = {}  # in this backward pass, in order
        self._waits: list[Callable[[], None]] = []  # of the buckets that have started

    def forget(self) -> None:
        """Make new buckets in the next step."""
        self._buckets = []

    @contextmanager
    def last_backward(self, *, overlapped: bool) -> Iterator[None]:
        """Context manager of the last backward pass of a step, which `reduce` follows.

        Args:
            overlapped: whether sums may start; not if the step may be tried again when it fails on one rank.
        """
        self._ready, self._waits = {}, []
        self._is_overlapped = overlapped
        handles = []
        if self._is_overlapped or not self._buckets:
            handles = [
                p.register_post_accumulate_grad_hook(self._on_ready)  # type: ignore[no-untyped-call]
                for p in self._model.parameters()
                if p.requires_grad
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _on_ready(self, parameter: nn.Parameter) -> None:
        """Start all buckets that are complete now, and follow only complete ones; called on the stream of autograd."""
        if any(parameter in bucket.views for bucket in self._buckets[: len(self._waits)]):
            raise RankError(
                "a gradient changed after its sum over the ranks had begun: the network computes a gradient in several "
                "parts, as torch.utils.checkpoint does with use_reentrant=True; set use_reentrant=False"
            )
        self._ready[parameter] = None
        while self._is_overlapped and len(self._waits) < len(self._buckets):
            bucket = self._buckets[len(self._waits)]
            if not bucket.views.keys() <= self._ready.keys():
                break
            self._waits.append(bucket.start(self._ranks))

    def reduce(self) -> None:
        """Sum what the backward pass has not, and wait for all sums; a parameter without gradient stays without.

        Raises:
            RankError: the ranks' gradients became ready in different orders.
        """
        started, planned = self._buckets[: len(self._waits)], self._buckets[len(self._waits) :]
        ordered = dict.fromkeys(itertools.chain(self._ready, self._model.parameters()))
        done = {p for bucket in started for p in bucket.views}
        left = [p for p in ordered if p.grad is not None and p not in done]
        if set(left) != {p for bucket in planned for p in bucket.views}:
            if not self._buckets:
                self._require_equal(left)
            planned = [_Bucket(some) for some in self._divided(left)]
        self._buckets = started + planned
        self._waits += [bucket.start(self._ranks) for bucket in planned]
        for wait in self._waits:
            wait()

    def _require_equal(self, parameters: Sequence[nn.Parameter]) -> None:
        names = {p: name for name, p in self._model.named_parameters()}
        self._ranks.require_equal("the order of gradients", {names[p]: i for i, p in enumerate(parameters)})

    def _divided(self, parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
        """Parameters by bucket."""
        sizes = [p.numel() * p.element_size() for p in parameters]
        last = len(parameters)  # begin of the last bucket
        while last > 0 and sum(sizes[last - 1 :]) <= self.outer_bytes:
            last -= 1
        divided: list[list[nn.Parameter]] = []
        size, limit = 0, self.outer_bytes
        for i, (p, p_size) in enumerate(zip(parameters, sizes, strict=True)):
            if not divided or size >= limit or i == last or p.dtype != divided[-1][-1].dtype:
                limit = self.bucket_bytes if divided else self.outer_bytes
                divided.append([])
                size = 0
            divided[-1].append(p)
            size += p_size
        return divided


class _Bucket:
    """Gradients of one type, one after the other in one tensor.

    Attributes:
        views: the gradient of each parameter, with the parameter's strides.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        unit = max(1, _ALIGNMENT_BYTES // parameters[0].element_size())
        sizes = [-(-p.numel() // unit) * unit for p in parameters]
        self._flat = torch.zeros(sum(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
        self.views: dict[nn.Parameter, Tensor] = {}
        for p, begin in zip(parameters, itertools.accumulate([0, *sizes[:-1]]), strict=True):
            strides = torch.empty_like(p, device="meta").stride()  # dense, if the parameter is not
            self.views[p] = self._flat.as_strided(p.size(), strides, begin)

    def start(self, ranks: Ranks) -> Callable[[], None]:
        """Copy the gradients into the bucket and start to sum it; returns what waits for the sum."""
        torch._foreach_copy_(list(self.views.values()), [p.grad for p in self.views if p.grad is not None])
        for p, view in self.views.items():
            p.grad = view
        return ranks.start_all_reduce_sum(self._flat)
