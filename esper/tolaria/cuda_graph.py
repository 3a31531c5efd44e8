"""Capture a function as a CUDA graph and replay it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from esper.configs import TolariaConfig
from esper.configs.optimization import OPTIMIZERS

__all__ = ["CapturedFunction", "capture_obstacle"]

_WARMUP_CALLS = 3
"""Eager calls before a capture, in which libraries choose their algorithms and allocate their workspaces."""


class CapturedFunction:
    """Run a function on CUDA eagerly a few times, then as one graph.

    The function must not read the device, and must keep what outlives a call in tensors allocated before. Call
    `invalidate` whenever it would do other operations, or use other tensors.

    Args:
        device: a CUDA device.
        shares: a function that never runs at the same time, whose memory for intermediate results this one uses too.
    """

    def __init__(self, device: torch.device, *, shares: CapturedFunction | None = None) -> None:
        self._device = device
        current = torch.cuda.current_stream(device)
        is_default = current == torch.cuda.default_stream(device)  # which cannot be captured
        self._stream = torch.cuda.Stream(device) if is_default else current  # type: ignore[no-untyped-call]
        # Kept: the next graph reuses the memory of the last.
        self._pool: Any = torch.cuda.graph_pool_handle() if shares is None else shares._pool
        self._graph: torch.cuda.CUDAGraph | None = None
        self._num_eager = 0

    @property
    def num_warmup_left(self) -> int:
        """Eager calls before the next capture; 0: the next call captures, or replays the graph."""
        return _WARMUP_CALLS - self._num_eager

    def invalidate(self) -> None:
        """Drop the graph; the function will be captured again."""
        self._graph, self._num_eager = None, 0

    def run(self, function: Callable[[], None]) -> None:
        """Call the function, or replay its graph."""
        if self._graph is None and self._num_eager < _WARMUP_CALLS:
            self._num_eager += 1
            # On the stream of the capture: autograd and the allocator tie tensors to the stream that made them.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                function()
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with (
                _own_workspaces(),
                torch.cuda.graph(
                    self._graph,
                    pool=self._pool,
                    stream=self._stream,
                    capture_error_mode="thread_local",  # other threads may use CUDA meanwhile, e.g. to pin memory
                ),
            ):
                function()
        self._graph.replay()


@contextlib.contextmanager
def _own_workspaces() -> Iterator[None]:
    """Context manager of a capture: the workspaces of cuBLAS lie in the graph's memory, which lives as long as it.

    Those of eager calls may be freed by others in the process, as Lightning does when a training ends.

    Source: `clear_cublas_manager` in torch/_inductor/cudagraph_trees.py
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()  # else eager calls would keep them


def capture_obstacle(config: TolariaConfig) -> str | None:
    """Why the training step cannot be captured as a CUDA graph with these settings; None: it can."""
    if config.debug_mode:
        return "debug_mode=true reads the device at every step"
    if config.model.gradient_checkpointing:
        return "model.gradient_checkpointing=true reads random states from the device"
    name = config.optimization.optimizer
    optimizer, is_mixed = OPTIMIZERS[name], config.mixed_precision is not False
    if not optimizer.is_capturable:
        return f"optimization.optimizer={name} computes on the CPU at every step"
    if is_mixed and config.autocast_dtype == "float16" and not optimizer.is_fused:
        return f"autocast_dtype=float16 with optimization.optimizer={name} reads the device at every step"
    return None
