"""The seed slot: what stands at a site."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    """Stand at a site of the host, hold what has grown there, and add it to the host's output.

    Kept kernels are added in full, the live one times `alpha`, a 0-dim tensor that is changed in place. Kernels
    after a block act one after the other, those of other sites in parallel. A live kernel that is not blending yet is
    not run at all, so a broken one cannot leak (0 * nan is nan); an empty slot is not part of the forward pass.

    Attributes:
        site: where it stands.
        max_kernels: most kernels it may hold.
        state: lifecycle state of the current seed.
        state_epoch: epochs finished when that state was entered.
        blend_start: optimizer step at which alpha began to rise; None before.
        grafts: recipe entries of the kernels it holds, in order of birth; the last is live while `is_live`.
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
        self._silenced = False
        self._join: Callable[[Tensor, Tensor], Tensor] | None = None
        # Not part of the state dict's contract of weights, but saved with it: blending survives a resume.
        self.register_buffer("alpha", torch.zeros(()))

    @property
    def is_live(self) -> bool:
        """Whether a kernel is attached whose fate is open."""
        return self.state in LIVE

    @property
    def has_room(self) -> bool:
        """Whether one more kernel may grow here, now or later."""
        return len(self.grafts) < self.max_kernels

    @property
    def live_graft(self) -> Graft:
        """Recipe entry of the live kernel."""
        if not self.is_live:
            raise SurgeryError(f"site {self.site.name!r} has no live kernel; its seed is {self.state}")
        return self.grafts[-1]

    @property
    def kept_grafts(self) -> list[Graft]:
        """Recipe entries of the kernels that were kept."""
        return self.grafts[:-1] if self.is_live else list(self.grafts)

    def kernel(self, graft: Graft) -> Kernel:
        """The module of a recipe entry."""
        module = self.get_submodule(f"k{graft.graft_id}")
        assert isinstance(module, Kernel)
        return module

    def enter(self, state: SeedLifecycleState, *, epoch: int) -> None:
        """Change the seed's state along the lifecycle table.

        A kept kernel leaves room for a new seed: the slot is dormant again while it `has_room`.

        Raises:
            SurgeryError: the table does not allow it.
        """
        self.state = transition(self.site.name, self.state, state)
        self.state_epoch = epoch
        if state is SeedLifecycleState.FOSSILIZED:
            self.alpha.zero_()
            self.blend_start = None
            if self.has_room:
                self.state = SeedLifecycleState.DORMANT

    def attach(self, graft: Graft, kernel: Kernel) -> None:
        """Add a kernel; the caller sets the state and makes sure that it fits."""
        self.grafts.append(graft)
        self.add_module(f"k{graft.graft_id}", kernel)

    def detach(self, graft: Graft) -> Kernel:
        """Take a kernel out and return it."""
        kernel = self.kernel(graft)
        self.grafts.remove(graft)
        delattr(self, f"k{graft.graft_id}")
        self.alpha.zero_()
        self.blend_start = None
        return kernel

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """Leave the live kernel out of the forward pass for a while; the judge's other arm."""
        self._silenced = True
        try:
            yield
        finally:
            self._silenced = False

    @contextmanager
    def joined(self, join: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
        """Let `join(kernel input, output so far)` stand for the live kernel in the forward pass for a while."""
        self._join = join
        try:
            yield
        finally:
            self._join = None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add the kernels to the output of the module at the site's end.

        Args:
            x: input of the module at the site's start (N, C, H, W).
            y: output of the module at its end (N, C', H', W'), with what grew there before.

        Returns:
            Tensor shaped like `y`.
        """
        reads_output = self.site.kind == "after"
        for graft in self.kept_grafts:
            y = self.kernel(graft).join(y if reads_output else x, y)
        if self._join is not None:
            return self._join(y if reads_output else x, y)
        if self.state in _RUNNING and not self._silenced:
            y = y + self.alpha * self.kernel(self.live_graft)(y if reads_output else x)
        return y
