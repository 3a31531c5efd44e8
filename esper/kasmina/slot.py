"""The seed slot: the module at a site that holds the kernels grown there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from esper.contracts.lifecycle import LIVE, SeedLifecycleState, transition
from esper.contracts.recipe import Graft
from esper.errors import SurgeryError
from esper.kasmina.sites import Site
from esper.urza import Kernel

__all__ = ["SeedSlot"]

_RUNNING = frozenset({SeedLifecycleState.BLENDING, SeedLifecycleState.HOLDING})


class SeedSlot(nn.Module):
    """Hold the kernels grown at a site of the host, and add their outputs to the host's.

    Kept kernels are added in full, the live one times `alpha`, a 0-dim tensor that is updated in place. At an `after`
    site kernels run in sequence, at others in parallel. A live kernel does not run before it blends, so a broken one
    cannot leak (0 * nan is nan); an empty slot is not part of the forward pass.

    Attributes:
        site: its place in the host.
        max_kernels: maximum number of kernels.
        state: lifecycle state of the current seed.
        state_epoch: epochs finished when that state was entered.
        blend_start: optimizer step at which alpha began to rise; None before.
        grafts: recipe entries of its kernels, in order of birth; the last is live while `is_live`.
    """

    alpha: Tensor

    def __init__(self, site: Site, *, max_kernels: int) -> None:
        super().__init__()
        self.site = site
        self.max_kernels = max_kernels
        self.state = SeedLifecycleState.DORMANT
        self.state_epoch = 0
        self.blend_start: int | None = None
        self.grafts: list[Graft] = []
        self._live_kernel_disabled = False
        self._replacement: Callable[[Tensor, Tensor], Tensor] | None = None
        self.register_buffer("alpha", torch.zeros(()))  # in the state dict: blending continues after a resume

    def __dir__(self) -> list[str]:
        # torch.jit.trace reads all that is listed, and `live_graft` raises if there is none.
        return [name for name in super().__dir__() if name != "live_graft"]  # type: ignore[no-untyped-call]

    @property
    def is_live(self) -> bool:
        """Whether a kernel is attached that is neither kept nor culled yet."""
        return self.state in LIVE

    @property
    def has_room(self) -> bool:
        """Whether another kernel may grow here, now or later."""
        return len(self.grafts) < self.max_kernels

    @property
    def live_graft(self) -> Graft:
        """Recipe entry of the live kernel.

        Raises:
            SurgeryError: no kernel is live.
        """
        if not self.is_live:
            raise SurgeryError(f"site {self.site.name!r} has no live kernel; its seed is {self.state}")
        return self.grafts[-1]

    @property
    def kept_grafts(self) -> list[Graft]:
        """Recipe entries of the kept kernels."""
        return self.grafts[:-1] if self.is_live else list(self.grafts)

    def kernel(self, graft: Graft) -> Kernel:
        """The module of a recipe entry."""
        module = self.get_submodule(f"k{graft.graft_id}")
        assert isinstance(module, Kernel)
        return module

    def enter(self, state: SeedLifecycleState, *, epoch: int) -> None:
        """Change the seed's state.

        Once a kernel is kept, the slot is dormant again if it `has_room`: a new seed may grow.

        Raises:
            SurgeryError: the lifecycle's transition table does not allow it.
        """
        self.state = transition(self.site.name, self.state, state)
        self.state_epoch = epoch
        if state is SeedLifecycleState.FOSSILIZED:
            self.alpha.zero_()
            self.blend_start = None
            if self.has_room:
                self.state = SeedLifecycleState.DORMANT

    def attach(self, graft: Graft, kernel: Kernel) -> None:
        """Add a kernel; the caller checks that it fits and sets the state."""
        self.grafts.append(graft)
        self.add_module(f"k{graft.graft_id}", kernel)

    def detach(self, graft: Graft) -> Kernel:
        """Remove a kernel and return it."""
        kernel = self.kernel(graft)
        self.grafts.remove(graft)
        delattr(self, f"k{graft.graft_id}")
        self.alpha.zero_()
        self.blend_start = None
        return kernel

    @contextmanager
    def live_kernel_disabled(self) -> Iterator[None]:
        """Context manager: leave the live kernel out of the forward pass, as the judge does for comparison."""
        self._live_kernel_disabled = True
        try:
            yield
        finally:
            self._live_kernel_disabled = False

    @contextmanager
    def live_kernel_replaced(self, replacement: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
        """Context manager: the slot's output is `replacement(kernel input, output without the live kernel)`."""
        self._replacement = replacement
        try:
            yield
        finally:
            self._replacement = None

    def forward(self, x: Tensor, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Add the kernels to the output of the site's end module.

        Args:
            x: input of the site's start module, (N, …) as `site.in_shape` at sites other than `after`.
            y: output of its end module, (N, …) as `site.out_shape`, including other slots that act there first.
            args, kwargs: see `Kernel.branch`.

        Returns:
            Tensor shaped like `y`.
        """
        reads_output = self.site.kind == "after"
        for graft in self.kept_grafts:
            y = self.kernel(graft).combine(y if reads_output else x, y, *args, **kwargs)
        if self._replacement is not None:
            return self._replacement(y if reads_output else x, y)
        if self.state in _RUNNING and not self._live_kernel_disabled:
            y = y + self.alpha * self.kernel(self.live_graft).branch(y if reads_output else x, *args, **kwargs)
        return y
