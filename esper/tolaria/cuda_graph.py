"""A step that is captured as one CUDA graph and replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["Capture"]

_WARMUP_STEPS = 3
"""Steps run eagerly before a capture: libraries choose their algorithms and allocate their workspaces in them."""


class Capture:
    """Run a function on CUDA eagerly a few times, then as one graph.

    The function must read nothing from the device, and keep what outlives it in tensors allocated before. When it would
    do other operations, or on other tensors, `invalidate` must be called.
    """

    def __init__(self, device: torch.device) -> None:
        current = torch.cuda.current_stream(device)
        is_default = current == torch.cuda.default_stream(device)  # which cannot be captured
        self._stream = torch.cuda.Stream(device) if is_default else current  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()  # kept: the next graph uses the memory of the last
        self._graph: torch.cuda.CUDAGraph | None = None
        self._num_eager = 0

    def invalidate(self) -> None:
        """Forget the graph; the function is captured anew."""
        self._graph, self._num_eager = None, 0

    def run(self, function: Callable[[], None]) -> None:
        """Do the function once."""
        if self._graph is None and self._num_eager < _WARMUP_STEPS:
            self._run_eagerly(function)
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            # Other threads may use CUDA meanwhile, such as one that pins memory.
            with torch.cuda.graph(self._graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                function()
        self._graph.replay()

    def _run_eagerly(self, function: Callable[[], None]) -> None:
        # On the stream of the capture: what autograd and the allocator remember of a stream must fit.
        self._num_eager += 1
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            function()
        torch.cuda.current_stream().wait_stream(self._stream)
