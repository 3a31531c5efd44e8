"""The morphable model: a host network and the seed slots in which modules grow."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from esper import costs, tezzeret, urza
from esper.contracts.recipe import Graft
from esper.errors import ConfigError, SurgeryError
from esper.kasmina.copies import copy_blocks, source_block
from esper.kasmina.modes import is_frozen_norm
from esper.kasmina.sites import DEFAULT_KINDS, Shape, Site, find_sites
from esper.kasmina.slot import SeedSlot
from esper.models.recompute import not_recomputing
from esper.urza.copied import CopiedBlocks
from esper.urza.kernel import main_tensor

__all__ = ["MorphableModel", "wrap"]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer type by element size in bytes."""


class MorphableModel(nn.Module):
    """A host network that can grow.

    The host keeps its modules, parameter names and forward function. Slots are separate modules that act through
    forward hooks; an empty slot has none, so a dormant model runs exactly the host's operations.

    Attributes:
        host: the host network.
        slots: the slots by site, in forward order.
        build_host: `build_host` of this host, with its arguments: for copies with fresh initial weights.
        input_shape, input_dtype: see `wrap`.
        all_sites: every site by name, in forward order, where a recipe may have kernels at sites without a slot.
        constants: names of the parameters that the host's own code froze, and not the setting `model.freeze`.

    Shape: input and output are the host's.
    """

    def __init__(
        self,
        host: nn.Module,
        sites: Sequence[Site],
        *,
        max_kernels_per_seed: int,
        input_shape: Shape,
        input_dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.host = host
        # Module names cannot contain dots: `layer2.0:beside` is registered as `layer2/0:beside`.
        self.slots = nn.ModuleDict(
            {_key(site.name): SeedSlot(site, max_kernels=max_kernels_per_seed) for site in sites}
        )
        self.input_shape = input_shape
        self.input_dtype = input_dtype
        self.build_host: Callable[..., nn.Module] | None = None
        self.all_sites: dict[str, Site] = {}
        self.constants: Collection[str] = ()
        self._is_frozen = not all(p.requires_grad for p in host.parameters())
        self._skipped: tuple[list[tuple[object, ...]], int] | None = None
        self._hooks: dict[str, tuple[RemovableHandle, RemovableHandle]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Run the host with the kernels grown in it."""
        output = self.host(x)
        if not isinstance(output, Tensor):
            raise ConfigError(
                f"model: the network returns a {type(output).__name__}, but training needs one tensor; wrap it in a "
                "module that returns the tensor to learn from"
            )
        return output

    def train(self, mode: bool = True) -> MorphableModel:
        """Set the mode of all modules but frozen batch norms, which stay in eval mode."""
        super().train(mode)
        for module in self.modules():
            if is_frozen_norm(module):
                module.training = False
        return self

    def skipped_macs(self) -> int:
        """MACs per example that the backward pass does without, as parameters of the host are frozen."""
        if not self._is_frozen:
            return 0
        now: list[tuple[object, ...]] = [(slot.state, *slot.grafts) for slot in self.all_slots()]
        if self._skipped is not None and self._skipped[0] == now:
            return self._skipped[1]
        with not_recomputing():
            found = costs.skipped_macs(self, self.input_shape, dtype=self.input_dtype)
        self._skipped = now, found
        return found

    def all_slots(self) -> list[SeedSlot]:
        """The slots in forward order."""
        return [slot for slot in self.slots.values() if isinstance(slot, SeedSlot)]

    def slot(self, site: str) -> SeedSlot:
        """The slot at a site.

        Raises:
            SurgeryError: there is no such site.
        """
        slot = dict(self.slots.items()).get(_key(site))
        if not isinstance(slot, SeedSlot):
            names = ", ".join(slot.site.name for slot in self.all_slots())
            raise SurgeryError(f"no site {site!r}; this network has: {names or 'none'}")
        return slot

    @property
    def recipe(self) -> list[Graft]:
        """Entries of all kernels in the network, in order of birth; with the host, it rebuilds the network."""
        return sorted((graft for slot in self.all_slots() for graft in slot.grafts), key=lambda graft: graft.graft_id)

    def graft(self, graft: Graft, *, copy_init: str | None = None) -> list[tuple[str, nn.Parameter]]:
        """Build a kernel from its recipe entry and attach it; returns its named parameters.

        The kernel gets the host's device, memory format and training mode.

        Args:
            graft: the entry.
            copy_init: initial weights of copies, instead of the entry's `copy_init`.

        Raises:
            ConfigError: there is no such blueprint, or its definition is not valid.
        """
        if graft.definition is not None:
            urza.declare(graft.definition, where=f"definition of {graft.blueprint_id}")
        slot = self._slot_for_kernel(graft.site)
        kernel: urza.Kernel
        if graft.sources:
            init = copy_init or graft.copy_init or "trained"
            kernel = copy_blocks(self, graft.sources, init=init, init_seed=graft.init_seed)
        else:
            kernel = tezzeret.build_kernel(
                graft.blueprint_id,
                in_shape=slot.site.in_shape,
                out_shape=slot.site.out_shape,
                init_seed=graft.init_seed,
                output_scale=graft.init_gain,
            )
            site = slot.site
            kernel.adapt(activation=site.activation, has_bias=site.has_bias, is_causal=site.is_causal)
            dtype = self._dtype_at(slot.site)
            for t in itertools.chain(kernel.parameters(), kernel.buffers()):
                if t.is_floating_point():  # `kernel.to` would make complex weights real, too
                    t.data = t.data.to(dtype)
        reference = next(self.host.parameters())
        kernel.to(reference.device).to(memory_format=self.memory_format)
        kernel.train(self.host.training)
        slot.attach(graft, kernel)
        self._hook(slot)
        return self.graft_parameters(graft)

    def ungraft(self, graft: Graft) -> list[tuple[str, nn.Parameter]]:
        """Remove a kernel; returns its named parameters."""
        removed = self.graft_parameters(graft)
        slot = self.slot(graft.site)
        slot.detach(graft)
        if not slot.grafts:
            for hook in self._hooks.pop(graft.site):
                hook.remove()
        return removed

    def graft_parameters(self, graft: Graft) -> list[tuple[str, nn.Parameter]]:
        """A kernel's parameters by their names in this model's state dict."""
        prefix = f"slots.{_key(graft.site)}.k{graft.graft_id}."
        return [(prefix + name, p) for name, p in self.slot(graft.site).kernel(graft).named_parameters()]

    def copied_parameters(self, graft: Graft) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Pairs of a parameter and the parameter of a copy that began as it."""
        kernel = self.slot(graft.site).kernel(graft)
        assert isinstance(kernel, CopiedBlocks)
        pairs = zip(graft.sources, kernel.blocks, strict=True)
        return [
            (source_block(self, source).get_parameter(name), p)
            for source, block in pairs
            for name, p in block.named_parameters()
        ]

    def all_copied_parameters(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """`copied_parameters` of all copies, in order of birth."""
        return [pair for graft in self.recipe if graft.sources for pair in self.copied_parameters(graft)]

    def replay(self, recipe: Iterable[Graft]) -> None:
        """Rebuild a grown network from its host, for weights that are loaded afterwards."""
        for graft in recipe:
            self.graft(graft, copy_init="trained")

    def fingerprint(self) -> dict[str, object]:
        """State of every seed, recipe entry of every kernel, and checksum of every parameter's bits, by name.

        Without buffers, as batch-norm statistics differ between ranks. Synchronises with the device once.
        """
        named = list(self.named_parameters())
        checksums = torch.stack([p.detach().view(_INTEGERS[p.element_size()]).sum(dtype=torch.int64) for _, p in named])
        seeds: dict[str, object] = {f"seed at {slot.site.name}": str(slot.state) for slot in self.all_slots()}
        kernels = {f"kernel {graft.graft_id}": str(graft) for graft in self.recipe}
        return seeds | kernels | dict(zip((name for name, _ in named), checksums.tolist(), strict=True))

    @property
    def memory_format(self) -> torch.memory_format:
        """channels_last if the host's convolutions are."""
        for p in self.host.parameters():
            if p.dim() == 4 and not p.is_contiguous():
                return torch.channels_last
        return torch.contiguous_format

    @property
    def hook_numbers(self) -> set[int]:
        """Keys of the slots' hooks among those of the host's modules."""
        return {hook.id for hooks in self._hooks.values() for hook in hooks}

    def has_site(self, site: str) -> bool:
        """Whether a recipe may have a kernel there."""
        return _key(site) in self.slots or site in self.all_sites

    def _dtype_at(self, site: Site) -> torch.dtype:
        """The number format of the block's parameters, or else the host's."""
        parameters = itertools.chain(self.host.get_submodule(site.block).parameters(), self.host.parameters())
        return next(p.dtype for p in parameters if p.is_floating_point())

    def _slot_for_kernel(self, site: str) -> SeedSlot:
        """The slot at a site; a new one, without room for others, where nothing may grow."""
        if _key(site) not in self.slots and site in self.all_sites:
            new = SeedSlot(self.all_sites[site], max_kernels=0).to(next(self.host.parameters()).device)
            slots = {**dict(self.slots.items()), _key(site): new}
            order = map(_key, self.all_sites)
            self.slots = nn.ModuleDict({key: slots[key] for key in order if key in slots})
        return self.slot(site)

    def _hook(self, slot: SeedSlot) -> None:
        site = slot.site
        if site.name in self._hooks:
            return
        add_hooks = _hook_block if site.start == site.end else _hook_layers
        self._hooks[site.name] = add_hooks(slot, self.host.get_submodule(site.start), self.host.get_submodule(site.end))


def _hook_block(slot: SeedSlot, block: nn.Module, _: nn.Module) -> tuple[RemovableHandle, RemovableHandle]:
    """Make a slot act on a block, which may take and return more than one tensor."""
    inputs: list[Tensor] = []

    def keep_input(_: nn.Module, args: tuple[Any, ...]) -> None:
        inputs[:] = args[:1]

    def add_kernels(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        y = slot(inputs.pop(), main_tensor(output), *args[1:], **kwargs)
        return (y, *output[1:]) if isinstance(output, tuple) else y

    return (
        block.register_forward_pre_hook(keep_input),
        # `beside` kernels act before `after` kernels of the same block, whichever was attached first.
        block.register_forward_hook(add_kernels, prepend=slot.site.kind == "beside", with_kwargs=True),
    )


def _hook_layers(slot: SeedSlot, start: nn.Module, end: nn.Module) -> tuple[RemovableHandle, RemovableHandle]:
    """Make a slot read the input of one layer and add to the output of another."""
    inputs: list[Tensor] = []

    def keep_input(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs[:] = args[:1]

    def add_kernels(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        added = slot(inputs.pop(), output)
        assert isinstance(added, Tensor)
        return added

    return start.register_forward_pre_hook(keep_input), end.register_forward_hook(add_kernels)


def _key(site: str) -> str:
    return site.replace(".", "/")


def wrap(
    model: nn.Module,
    target_layers: Sequence[str],
    seeds_per_layer: int = 4,
    *,
    input_shape: Shape,
    input_dtype: torch.dtype | None = None,
    max_kernels_per_seed: int = 3,
    site_kinds: Sequence[str] = DEFAULT_KINDS,
) -> MorphableModel:
    """Make a network morphable; the network is not copied.

    Args:
        model: the host.
        target_layers: names or patterns of the layers that may grow; see `find_sites`.
        seeds_per_layer: maximum number of slots per target layer.
        input_shape: shape of an example of the host's input, such as (C, H, W) or (T,).
        input_dtype: its dtype; None: that of the parameters. Whole numbers are ids of tokens.
        max_kernels_per_seed: maximum number of kernels per slot.
        site_kinds: which kinds of site to offer: `beside`, `after`, `parallel`, `width`; see `Site`.

    Raises:
        ConfigError: a target matches no layer, or the layer cannot grow.
    """
    sites = find_sites(
        model,
        target_layers=target_layers,
        seeds_per_layer=seeds_per_layer,
        input_shape=input_shape,
        input_dtype=input_dtype,
        kinds=site_kinds,
    )
    wrapped = MorphableModel(
        model,
        sites,
        max_kernels_per_seed=max_kernels_per_seed,
        input_shape=input_shape,
        input_dtype=input_dtype,
    )
    reference = next(model.parameters(), None)
    return wrapped if reference is None else wrapped.to(reference.device)
