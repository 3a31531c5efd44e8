"""Compiling the training step by regions: each block of the host, what lies around them, each module that grows.

Every region is compiled for itself and in place: modules, hooks and state-dict keys stay, equal blocks share a graph,
and what grows later adds graphs of its own and leaves the others alone. Only the training step runs what was compiled;
evaluating, scoring and checking run the plain forward functions, with their own batch sizes and modes.
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

LIMIT = 128
"""Graphs of one run. A healthy run needs one for each different block and one for each module that grows."""


class Regions:
    """The compiled regions of a training step.

    Args:
        backend: what compiles a graph: a name or function that `torch.compile` takes.

    Attributes:
        num_graphs: graphs compiled so far.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self.num_graphs = 0
        self._num_told = 0
        self._active = False
        self._compiler: Callable[..., Any] = torch._dynamo.lookup_backend(backend)
        # Without the first, a hook that growing puts inside a compiled block would be ignored. Beyond the limits dynamo
        # would run functions uncompiled without a word; `is_exhausted` tells.
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        torch._dynamo.config.recompile_limit = LIMIT
        torch._dynamo.config.accumulated_recompile_limit = 4 * LIMIT

    @property
    def is_exhausted(self) -> bool:
        """Whether the limit of graphs was hit: something is compiled again and again, and now runs uncompiled."""
        return self.num_graphs >= LIMIT

    def news(self) -> tuple[str, str] | None:
        """Level and text of what the user should know, once: graphs that were compiled since the last call."""
        if self.num_graphs == self._num_told:
            return None
        self._num_told = self.num_graphs
        if self.is_exhausted:
            return "WARNING", (
                f"compile_model: {self.num_graphs} graphs compiled, which is the limit: some part of the network is "
                "compiled again and again; the run goes on uncompiled"
            )
        return "INFO", f"compile_model: {self.num_graphs} graphs compiled so far"

    def add_host(self, host: nn.Module, blocks: Sequence[str]) -> None:
        """Compile a network: the blocks of these names each for itself, and what lies around them, or all of it."""
        for name in blocks:
            self.add(host.get_submodule(name))
        for child in dict.fromkeys(name.partition(".")[0] for name in blocks):
            layer = host.get_submodule(child)
            if child not in blocks:  # a graph of its own is what its blocks have
                layer.forward = torch.compiler.disable(layer.forward)  # type: ignore[no-untyped-call]
        self.add(host)

    def add(self, module: nn.Module) -> None:
        """Compile a module's forward function; hooks on the module itself stay outside."""
        module.forward = self.compiled(module.forward)

    def compiled(self, function: Callable[P, R]) -> Callable[P, R]:
        """The function, compiled while these regions are active and plain otherwise."""
        fast = torch.compile(function, backend=self._compile, dynamic=False)

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return (fast if self._active and not self.is_exhausted else function)(*args, **kwargs)

        return call

    @contextmanager
    def active(self) -> Iterator[None]:
        """Run compiled what is compiled.

        Raises:
            ConfigError: this machine cannot compile.
        """
        self._active = True
        try:
            yield
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = one_line(error.inner_exception, max_length=200)
            raise ConfigError(f"compile_model=true: {reason}; mend that or set compile_model=false") from error
        finally:
            self._active = False

    def _compile(self, graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.num_graphs += 1
        compiled: Callable[..., Any] = self._compiler(graph, inputs)
        return compiled
