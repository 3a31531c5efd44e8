"""Regional torch.compile of the training step: each block of the host, the layers around them, each grown module.

Every region is compiled separately and in place: modules, hooks and state-dict keys stay, equal blocks share a graph,
and a module that grows later adds its own graph without recompiling others. Only the training step runs compiled code;
evaluation, scoring and checks run the plain forward functions, with their own batch sizes and modes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
import torch._dynamo
from torch import nn

from esper.errors import ConfigError, one_line

__all__ = ["Regions"]

P = ParamSpec("P")
R = TypeVar("R")

MAX_GRAPHS = 128
"""Limit of graphs in a run. It should need one for each different block and each grown module."""
_MAX_RUNS = 64
"""Runs of a process, one after the other or at once, whose graphs dynamo keeps."""


class Regions:
    """The compiled regions of a training step.

    Args:
        backend: of `torch.compile`: a name or function.

    Attributes:
        num_graphs: graphs compiled so far.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self.num_graphs = 0
        self._num_reported = 0
        self._active = False
        self._compiler: Callable[..., Any] = torch._dynamo.lookup_backend(backend)
        # Guards: else a hook that growth adds inside a compiled block is ignored. Limits: they count the graphs of all
        # runs of the process, and beyond them dynamo silently runs functions uncompiled; `limit_reached` counts this
        # run's and reports it.
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        torch._dynamo.config.recompile_limit = _MAX_RUNS * MAX_GRAPHS
        torch._dynamo.config.accumulated_recompile_limit = 4 * _MAX_RUNS * MAX_GRAPHS

    @property
    def limit_reached(self) -> bool:
        """Whether so many graphs were compiled that everything now runs uncompiled."""
        return self.num_graphs >= MAX_GRAPHS

    def notice(self) -> tuple[str, str] | None:
        """Level and message about graphs compiled since the last call; None if there are none."""
        if self.num_graphs == self._num_reported:
            return None
        self._num_reported = self.num_graphs
        if self.limit_reached:
            return "WARNING", (
                f"compile_model: {self.num_graphs} graphs compiled, which is the limit: some part of the network is "
                "recompiled again and again; the run continues uncompiled"
            )
        return "INFO", f"compile_model: {self.num_graphs} graphs compiled so far"

    def add_host(self, host: nn.Module, blocks: Sequence[str]) -> None:
        """Compile each named block, and the rest of the network; without blocks, the network as a whole."""
        for name in blocks:
            self.add(host.get_submodule(name))
        for child in dict.fromkeys(name.partition(".")[0] for name in blocks):
            layer = host.get_submodule(child)
            if child not in blocks:  # its blocks have graphs of their own
                layer.forward = torch.compiler.disable(layer.forward)  # type: ignore[no-untyped-call]
        self.add(host)

    def add(self, module: nn.Module) -> None:
        """Compile a module's forward function; hooks on the module itself are not compiled."""
        module.forward = self.compiled(module.forward)

    def compiled(self, function: Callable[P, R]) -> Callable[P, R]:
        """Wrap a function: compiled while these regions are active, plain otherwise."""
        fast = torch.compile(function, backend=self._compile, dynamic=False)

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return (fast if self._active and not self.limit_reached else function)(*args, **kwargs)

        return call

    @contextmanager
    def active(self) -> Iterator[None]:
        """Context manager: run the compiled functions.

        Raises:
            ConfigError: this machine cannot compile.
        """
        self._active = True
        try:
            yield
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = one_line(error.inner_exception, max_length=200)
            raise ConfigError(f"compile_model=true: {reason}; fix that or set compile_model=false") from error
        finally:
            self._active = False

    def _compile(self, graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.num_graphs += 1
        compiled: Callable[..., Any] = self._compiler(graph, inputs)
        return compiled
