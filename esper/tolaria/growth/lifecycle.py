"""The seeds of a network during a run: germinate, blend, hold, keep or cull, with optimizer, costs and journal."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from torch import nn
from torch.optim import Optimizer

from esper import urza
from esper.configs import MorphogeneticConfig, OptimizationConfig, derive_seed
from esper.contracts.events import Event, StateChanged, SurgeryEnded, SurgeryIntended
from esper.contracts.lifecycle import SeedLifecycleState
from esper.contracts.recipe import Graft
from esper.costs import Cost, training_macs
from esper.errors import MemoryLimitError
from esper.kasmina import MorphableModel, SeedSlot, surgery
from esper.kasmina.copies import adjust_copies, copy_sources, kernel_cost, scale_to_depth
from esper.kasmina.modes import reestimate_norms
from esper.tolaria import optim
from esper.tolaria.budget import Budget, plan_budget
from esper.tolaria.growth.data import GrowthData
from esper.tolaria.growth.refusals import Refusals
from esper.tolaria.memory import within_memory
from esper.tolaria.state import TrainingState
from esper.tolaria.step import TrainStep
from esper.tracking import Journal
from esper.urza.copied import COPY

__all__ = ["Lifecycle"]

_S = SeedLifecycleState


class Lifecycle:
    """The state machine of all seeds; owner of every change of the architecture during a run.

    A change of state is made in the model, the optimizer and the captured step, added to the costs, and journalled.
    `Growth` decides which changes to make and when.

    Attributes:
        cost: current size of the network.
        initial_cost: size of the network in the first step.
        host_cost: the same without what `policy=replay` builds.
        host_skipped_macs: what training the host alone skips per example, as layers are frozen.
        num_germinated: kernels grown so far, kept or not.
        num_verdicts: verdicts of the judge so far.
        last_adaptation: epoch of the last change, by layer.
        refusals: what is not to grow again.
    """

    def __init__(
        self,
        *,
        config: MorphogeneticConfig,
        optimization: OptimizationConfig,
        model: MorphableModel,
        optimizer: Optimizer,
        data: GrowthData,
        step: TrainStep,
        journal: Journal,
        state: TrainingState,
        rng_seed: int,
        host_cost: Cost,
    ) -> None:
        self.config = config
        self.optimization = optimization
        self.model = model
        self.optimizer = optimizer
        self.data = data
        self.step = step
        self.journal = journal
        self.state = state
        self.rng_seed = rng_seed
        self.host_cost = self.initial_cost = self.cost = host_cost
        self.num_germinated = 0
        self.num_verdicts = 0
        self.last_adaptation: dict[str, int] = {}
        self.refusals = Refusals()
        self._kernel_costs: dict[int, Cost] = {}
        self.host_skipped_macs = model.skipped_macs()
        state.peak_parameters = host_cost.num_parameters

    @cached_property
    def budget(self) -> Budget:
        """Length of the whole training; the network that the run starts with has to be there."""
        return plan_budget(
            self.optimization,
            self.config,
            model=self.model,
            image_macs=training_macs(1, self.initial_cost.num_macs, skipped=self.host_skipped_macs),
            steps_per_epoch=self.step.loader.num_batches,
            batch_size=self.step.loader.batch_size,
        )

    def spent(self, steps_ahead: int = 0) -> int:
        """What is used of the budget, or will be so many steps ahead."""
        return self.budget.spent(self.state) + self.budget.cost_of(steps_ahead, self.image_macs)

    @property
    def running_macs(self) -> int:
        """MACs per example of the network in a training step: without kernels that incubate."""
        if self.config.incubation == "none":
            return self.cost.num_macs
        incubating = [slot for slot in self.model.all_slots() if slot.state is _S.TRAINING]
        return self.cost.num_macs - sum(self.kernel_cost(slot.live_graft).num_macs for slot in incubating)

    @property
    def image_macs(self) -> int:
        """MACs of training on one example."""
        return training_macs(1, self.running_macs, skipped=self.model.skipped_macs())

    def kernel_cost(self, graft: Graft) -> Cost:
        """Parameters and MACs of a kernel."""
        if graft.graft_id not in self._kernel_costs:
            self._kernel_costs[graft.graft_id] = kernel_cost(self.model, graft)
        return self._kernel_costs[graft.graft_id]

    def emit(self, kind: type[Event], **fields: Any) -> None:
        """Journal an event of this step."""
        self.journal.write(kind(step=self.state.global_step, **fields))

    def state_dict(self) -> dict[str, Any]:
        """Everything but the recipe and the tensors, as JSON."""
        return {
            "num_germinated": self.num_germinated,
            "num_verdicts": self.num_verdicts,
            "last_adaptation": self.last_adaptation,
            "refusals": self.refusals.state_dict(),
            "slots": {
                slot.site.name: {"state": slot.state, "epoch": slot.state_epoch, "blend_start": slot.blend_start}
                for slot in self.model.all_slots()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the model must have been rebuilt from its recipe before."""
        self.num_germinated = state["num_germinated"]
        self.num_verdicts = state["num_verdicts"]
        self.last_adaptation = dict(state["last_adaptation"])
        self.refusals = Refusals.of(state["refusals"]) if "refusals" in state else Refusals()  # added since 0.1.0
        for site, saved in state["slots"].items():
            slot = self.model.slot(site)
            slot.state = SeedLifecycleState(saved["state"])
            slot.state_epoch = saved["epoch"]
            slot.blend_start = saved["blend_start"]
        for graft in self.model.recipe:
            self._register(graft)

    def adopt(self, recipe: Iterable[Graft]) -> None:
        """Build the kernels of an earlier network before the first step; their weights are to be loaded.

        They train like the host, without a warm-up of their own.

        Raises:
            SurgeryError: the recipe is not one of this host.
        """
        for graft in recipe:
            adopted = dataclasses.replace(graft, born_step=0)
            self.model.replay([adopted])
            self._register(adopted)
        optim.check_membership(self.optimizer, self.model)

    def rebuild(self, recipe: Iterable[Graft]) -> None:
        """Build a recorded network before the first step of a run.

        The kernels train like the host: new initial weights, output scale 1, no warm-up of their own.

        Raises:
            SurgeryError: the recipe is not one of this host.
        """
        for number, graft in enumerate(recipe, start=1):
            fresh = dataclasses.replace(
                graft,
                graft_id=number,
                init_seed=derive_seed(self.rng_seed, number),
                init_gain=1.0,
                born_step=0,
                copy_init="fresh" if graft.sources else None,
            )
            self.model.graft(fresh)
            self._register(fresh)
        scale_to_depth(self.model)
        optim.check_membership(self.optimizer, self.model)

    # --- attaching and removing kernels ---------------------------------------------------------------------------

    def new_graft(self, slot: SeedSlot, blueprint_id: str) -> Graft:
        """Recipe entry for the next kernel.

        Raises:
            ConfigError: there is no such blueprint.
        """
        blueprint = urza.get(blueprint_id)
        num_adopted = max((graft.graft_id for graft in self.model.recipe if graft.born_step == 0), default=0)
        graft_id = num_adopted + self.num_germinated + 1
        sources = copy_sources(self.model, slot, self.config.copy_order) if blueprint_id == COPY else ()
        return Graft(
            graft_id=graft_id,
            site=slot.site.name,
            blueprint_id=blueprint.blueprint_id,
            definition=blueprint.definition,
            init_seed=derive_seed(self.rng_seed, graft_id),
            init_gain=self.config.insertion_gain if self.config.insertion == "gain" else 0.0,
            born_step=self.state.global_step,
            sources=sources,
            copy_init=self.config.copy_init if sources else None,
        )

    def attach(self, graft: Graft) -> surgery.Change:
        """Attach and check a kernel, and add it to optimizer and costs; on an error nothing has changed.

        Raises:
            SurgeryError: it does not fit or fails its checks, or it was undone here before.
            MemoryLimitError: it needs more memory than there is; it is refused from now on.
        """
        ranks = self.step.ranks
        self.refusals.require_none(graft.site, graft.blueprint_id)
        try:
            change = within_memory(
                lambda: surgery.germinate(self.model, graft, images=self.data.sample(), epoch=self.state.epoch), ranks
            )
            within_memory(lambda: self._register(graft), ranks)
            optim.check_membership(self.optimizer, self.model)
        except BaseException as error:
            if graft in self.model.slot(graft.site).grafts:
                self.undo(graft)
            if isinstance(error, MemoryLimitError):
                raise self.refuse(graft, str(error)) from None
            raise
        adjust_copies(self.model, graft)
        return change

    def undo(self, graft: Graft) -> None:
        """Reverse `attach`."""
        parameters = self.model.graft_parameters(graft)
        surgery.abort(self.model, graft)
        self._unregister(graft, parameters)

    def refuse(self, graft: Graft, problem: str) -> MemoryLimitError:
        """Do not grow a module again that needs too much memory; returns the error that says so."""
        reason = f"out of memory: {problem}"
        self.refusals.add([graft], reason)
        return MemoryLimitError(f"{reason}; {graft.blueprint_id} is not tried again at {graft.site} in this run")

    def _register(self, graft: Graft) -> None:
        """Add an attached kernel to optimizer, step and costs."""
        is_rebuilt = graft.born_step == 0  # trains like the host
        kernel = self.model.slot(graft.site).kernel(graft)
        # All ranks draw from the same seed; different processors may still differ in the last bit.
        self.step.ranks.broadcast([*kernel.parameters(), *kernel.buffers()])
        optim.add_parameters(
            self.optimizer,
            self.optimization,
            [(name, p) for name, p in self.model.graft_parameters(graft) if p.requires_grad],
            born_step=graft.born_step,
            warmup_steps=self.config.newborn_warmup_steps,
            output_scale=kernel.output_scale,
            output_scale_lr_factor=1.0 if is_rebuilt else self.config.insertion_gain_rate,
            decayed=is_rebuilt or self.config.newborn_weight_decay,
            undecayed=optim.undecayed_parameters(self.model, self.model.all_copied_parameters()),
        )
        if self.config.copy_optimizer_state and graft.copy_init in ("trained", "shared"):
            optim.copy_state(self.optimizer, self.model.copied_parameters(graft))
        self.step.add_kernel(kernel, step=self.state.global_step)
        self.cost += self.kernel_cost(graft)
        if is_rebuilt:
            self.initial_cost += self.kernel_cost(graft)
            if self.config.policy != "replay":
                self.host_cost += self.kernel_cost(graft)
        self.state.peak_parameters = max(self.state.peak_parameters, self.cost.num_parameters)

    def _unregister(self, graft: Graft, parameters: list[tuple[str, nn.Parameter]]) -> None:
        optim.remove_parameters(self.optimizer, parameters)
        self.step.sync_parameters(step=self.state.global_step)
        self.cost -= self._kernel_costs.pop(graft.graft_id, Cost(num_parameters=0, num_macs=0))

    @contextmanager
    def _transaction(self, action: str, graft: Graft) -> Iterator[None]:
        """Journal the intent before the body, and the commit or failure after it; a failed body undoes its changes."""
        where = {"graft_id": graft.graft_id, "action": action, "site": graft.site, "blueprint_id": graft.blueprint_id}
        self.emit(SurgeryIntended, **where)
        started, before, error = time.monotonic(), self.cost, None
        try:
            yield
        except Exception as failure:
            error = str(failure)
            raise
        finally:
            after = self.cost if error is None else before
            self.emit(
                SurgeryEnded,
                **where,
                committed=error is None,
                error=error,
                num_parameters_before=before.num_parameters,
                num_parameters_after=after.num_parameters,
                num_macs_before=before.num_macs,
                num_macs_after=after.num_macs,
                skipped_macs_after=self.model.skipped_macs() if error is None else 0,
                duration_s=time.monotonic() - started,
            )

    # --- changes of state -----------------------------------------------------------------------------------------

    def germinate(self, slot: SeedSlot, blueprint_id: str, *, reason: str) -> None:
        """DORMANT → GERMINATED → TRAINING, and → BLENDING if there is no incubation.

        Raises:
            EsperError: the kernel cannot grow there; nothing has changed.
        """
        graft = self.new_graft(slot, blueprint_id)
        with self._transaction("germinate", graft):
            change = self.attach(graft)
        if graft.copy_init == "shared" and self.step.ema is not None:
            self.step.ema.restart(step=self.state.global_step)  # weights of the host have changed
        self.num_germinated += 1
        self.last_adaptation[slot.site.layer] = self.state.epoch
        self._changed(slot, graft, _S.DORMANT, _S.GERMINATED, reason=reason)
        self._changed(
            slot, graft, _S.GERMINATED, _S.TRAINING, reason="it passed its checks", passed=change.checks_passed
        )
        if self.config.incubation == "none":
            self.begin_blending(slot, reason="no incubation: it trains with the host")

    def begin_blending(self, slot: SeedSlot, *, reason: str) -> None:
        """TRAINING → BLENDING, and → HOLDING if alpha is 1 at once."""
        surgery.begin_blending(slot, step=self.state.global_step, epoch=self.state.epoch)
        self._changed(slot, slot.live_graft, _S.TRAINING, _S.BLENDING, reason=reason)
        if self.config.blending_steps == 0:
            self.blend(slot)

    def blend(self, slot: SeedSlot) -> None:
        """Set alpha for the next step; BLENDING → HOLDING once it is 1."""
        blending_steps = self.config.blending_steps
        if surgery.set_alpha(slot, step=self.state.global_step, blending_steps=blending_steps) == 1.0:
            passed = surgery.hold(slot, epoch=self.state.epoch)
            self._changed(slot, slot.live_graft, _S.BLENDING, _S.HOLDING, reason="alpha is 1", passed=passed)

    def keep(self, slot: SeedSlot, *, reason: str) -> None:
        """HOLDING → FOSSILIZED."""
        graft = surgery.fossilize(slot, epoch=self.state.epoch)
        self._changed(slot, graft, _S.HOLDING, _S.FOSSILIZED, reason=reason)

    def cull(self, slot: SeedSlot, *, reason: str) -> None:
        """Remove the live kernel: any live state → CULLED → EMBARGOED."""
        graft, old = slot.live_graft, slot.state
        cost = self.kernel_cost(graft)
        with self._transaction("cull", graft):
            change = surgery.cull(self.model, graft.site, epoch=self.state.epoch)
            self._unregister(graft, change.removed)
            optim.check_membership(self.optimizer, self.model)
        self.last_adaptation[slot.site.layer] = self.state.epoch
        self._changed(slot, graft, old, _S.CULLED, reason=reason)
        self._changed(slot, graft, _S.CULLED, _S.EMBARGOED, reason="nothing grows here for a while")
        if old is _S.TRAINING:
            return  # it never ran in the host
        num_steps = self.state.global_step - graft.born_step
        num_steps -= 0 if self.config.incubation == "none" else self.config.incubation_steps
        self.state.ledger.discarded_macs += training_macs(num_steps * self.step.loader.batch_size, cost.num_macs)
        # The host's batch-norm statistics include the removed branch.
        reestimate_norms(self.model, self.data.norm_images())
        self.state.ledger.judging_macs += self.data.num_norm * self.cost.num_macs
        if self.step.ema is not None:
            self.step.ema.restart(step=self.state.global_step)

    def end_embargo(self, slot: SeedSlot) -> None:
        """EMBARGOED → DORMANT."""
        slot.enter(_S.DORMANT, epoch=self.state.epoch)
        self._changed(slot, None, _S.EMBARGOED, _S.DORMANT, reason="the embargo is over")

    def _changed(
        self,
        slot: SeedSlot,
        graft: Graft | None,
        old: SeedLifecycleState,
        new: SeedLifecycleState,
        *,
        reason: str,
        passed: tuple[str, ...] = (),
    ) -> None:
        self.step.invalidate()
        self.emit(
            StateChanged,
            epoch=self.state.epoch,
            site=slot.site.name,
            blueprint_id=graft.blueprint_id if graft else None,
            old=old,
            new=new,
            reason=reason,
            checks_passed=passed,
        )
