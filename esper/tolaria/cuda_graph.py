"""Capture a function as a CUDA graph and replay it."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["CapturedFunction"]

_WARMUP_CALLS = 3
"""Eager calls before a capture, in which libraries choose their algorithms and allocate their workspaces."""


class CapturedFunction:
    """Run a function on CUDA eagerly a few times, then as one graph.

    The function must not read the device, and must keep what outlives a call in tensors allocated before. Call
    `invalidate` whenever it would do other operations, or use other tensors.
    """

    def __init__(self, device: torch.device) -> None:
        current = torch.cuda.current_stream(device)
        is_default = current == torch.cuda.default_stream(device)  # which cannot be captured
        self._stream = torch.cuda.Stream(device) if is_default else current  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()  # kept: the next graph reuses the memory of the last
        self._graph: torch.cuda.CUDAGraph | None = None
        self._num_eager = 0

    def invalidate(self) -> None:
        """Drop the graph; the function will be captured again."""
        self._graph, self._num_eager = None, 0

    def run(self, function: Callable[[], None]) -> None:
        """Call the function, or replay its graph."""
        if self._graph is None and self._num_eager < _WARMUP_CALLS:
            self._num_eager += 1
            # On the stream of the capture: autograd and the allocator tie tensors to the stream that made them.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                function()
            torch.cuda.current_stream().wait_stream(self._stream)
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            # thread_local: other threads may use CUDA during the capture, e.g. to pin memory.
            with torch.cuda.graph(self._graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                function()
        self._graph.replay()
