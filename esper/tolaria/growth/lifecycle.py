"""The lives of seeds in a training: germinate, incubate, blend, judge, keep or cull, and write down all of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from esper import urza
from esper.configs import MorphogeneticConfig, OptimizationConfig, derive_seed
from esper.contracts.lifecycle import SeedLifecycleState
from esper.contracts.recipe import Graft
from esper.costs import Cost, count, training_macs
from esper.kasmina import MorphableModel, SeedSlot, surgery
from esper.kasmina.modes import reestimate_norms
from esper.tamiyo import Verdict, judge, significance_of
from esper.tolaria import optim
from esper.tolaria.evaluate import lowest
from esper.tolaria.growth.incubation import ALPHAS, incubate, try_alphas
from esper.tolaria.growth.judging import paired_losses
from esper.tolaria.growth.log import GrowthLog
from esper.tolaria.state import TrainingState
from esper.tolaria.step import TrainStep
from esper.tracking import Journal

__all__ = ["GrowthData", "Lifecycle"]

_S = SeedLifecycleState
Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthData:
    """The images that growing looks at; each call starts a new pass.

    Attributes:
        controller: batches of the controller split, for scores.
        judge: batches of the judge split, for verdicts.
        norm_images: training batches from which batch-norm statistics are estimated.
        sample: a few training images, for checking a new kernel.
        num_controller: images in the controller split.
        num_judge: images in the judge split.
        num_norm: images in a pass of `norm_images`.
    """

    controller: Callable[[], Batches]
    judge: Callable[[], Batches]
    norm_images: Callable[[], Iterable[Tensor]]
    sample: Callable[[], Tensor]
    num_controller: int
    num_judge: int
    num_norm: int


class Lifecycle:
    """Owner of everything that changes the architecture during a run; `Growth` decides what it does.

    It shares `state` with the trainer and adds to what growing cost.

    Attributes:
        cost: the network's size as it stands.
        host_cost: that of the host.
        num_germinated: modules that were grown, kept or not.
        num_verdicts: verdicts of the judge.
        last_adaptation: epoch of the last change, by layer.
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
        self.log = GrowthLog(journal, state)
        self.state = state
        self.rng_seed = rng_seed
        self.host_cost = self.cost = host_cost
        self.num_germinated = 0
        self.num_verdicts = 0
        self.last_adaptation: dict[str, int] = {}
        self._kernel_costs: dict[int, Cost] = {}
        state.peak_parameters = host_cost.num_parameters

    def rebuild(self, recipe: Iterable[Graft]) -> None:
        """Before the first step of a run, build a recorded network.

        Every kernel is there from the start like the host: weights of its own, output scale 1, no warm-up of its own.

        Raises:
            SurgeryError: the recipe is not one of this host.
        """
        for number, graft in enumerate(recipe, start=1):
            fresh = dataclasses.replace(
                graft, graft_id=number, init_seed=self._init_seed(number), init_gain=1.0, born_step=0
            )
            self.model.graft(fresh)
            self.adopt(fresh)
        optim.check_membership(self.optimizer, self.model)

    def before_step(self) -> None:
        """Before the coming step: train what incubates, raise the alpha of what blends."""
        for slot in self.model.all_slots():
            if slot.state is _S.TRAINING:
                self._incubate(slot)
            if slot.state is _S.BLENDING:
                self._blend(slot)

    def end_of_epoch(self, *, is_last: bool) -> None:
        """Judge what is due and end embargoes; after the last epoch nothing stays undecided."""
        epoch = self.state.epoch
        for slot in self.model.all_slots():
            held = epoch - slot.state_epoch
            if slot.state is _S.HOLDING and (is_last or held >= self.config.holding_epochs):
                self._judge(slot) if self.config.judged else self._keep(slot, reason="kept without being judged")
            elif slot.is_live and is_last:
                self.cull(slot, reason="training ended before it reached alpha 1: unmeasured is not healthy")
            elif slot.state is _S.EMBARGOED and held >= self.config.adaptation_cooldown:
                slot.enter(_S.DORMANT, epoch=epoch)
                self._changed(slot, None, _S.EMBARGOED, _S.DORMANT, reason="the embargo is over")

    @property
    def running_macs(self) -> int:
        """Multiply-accumulates of the network as a training step runs it: without what incubates."""
        incubating = [slot for slot in self.model.all_slots() if slot.state is _S.TRAINING]
        return self.cost.num_macs - sum(self._kernel_cost(slot.live_graft).num_macs for slot in incubating)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the recipe and the tensors, as JSON."""
        return {
            "num_germinated": self.num_germinated,
            "num_verdicts": self.num_verdicts,
            "last_adaptation": self.last_adaptation,
            "slots": {
                slot.site.name: {"state": slot.state, "epoch": slot.state_epoch, "blend_start": slot.blend_start}
                for slot in self.model.all_slots()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` stood; the recipe has been replayed on the model before."""
        self.num_germinated = state["num_germinated"]
        self.num_verdicts = state["num_verdicts"]
        self.last_adaptation = dict(state["last_adaptation"])
        for site, saved in state["slots"].items():
            slot = self.model.slot(site)
            slot.state = SeedLifecycleState(saved["state"])
            slot.state_epoch = saved["epoch"]
            slot.blend_start = saved["blend_start"]
        for graft in self.model.recipe:
            self.adopt(graft)

    def new_graft(self, slot: SeedSlot, blueprint_id: str) -> Graft:
        """Recipe entry of a kernel that would be attached now.

        Raises:
            ConfigError: there is no such blueprint.
        """
        blueprint = urza.get(blueprint_id)  # an unknown name is refused before anything is intended
        return Graft(
            graft_id=self.num_germinated + 1,
            site=slot.site.name,
            blueprint_id=blueprint.blueprint_id,
            definition=blueprint.definition,
            init_seed=self._init_seed(self.num_germinated + 1),
            init_gain=self.config.insertion_gain if self.config.insertion == "gain" else 0.0,
            born_step=self.state.global_step,
        )

    def attach(self, graft: Graft) -> surgery.Change:
        """Attach a kernel, checked, with optimizer and cost; on an error everything is as it was."""
        change = surgery.germinate(self.model, graft, images=self.data.sample(), epoch=self.state.epoch)
        try:
            self.adopt(graft)
            optim.check_membership(self.optimizer, self.model)
        except BaseException:
            self.undo(graft)
            raise
        return change

    def undo(self, graft: Graft) -> None:
        """Take a live kernel out as if it had never been attached."""
        parameters = self.model.graft_parameters(graft)
        surgery.abort(self.model, graft)
        self._release(graft, parameters)

    def germinate(self, slot: SeedSlot, blueprint_id: str, *, reason: str) -> None:
        """Grow a kernel in a slot, and begin what comes first: incubation, or blending.

        Raises:
            EsperError: it cannot grow there; nothing has changed.
        """
        graft = self.new_graft(slot, blueprint_id)
        with self.log.operation("germinate", graft, self.cost) as operation:
            change = self.attach(graft)
            operation.after = self.cost
        self.num_germinated += 1
        self.last_adaptation[slot.site.layer] = self.state.epoch
        self._changed(slot, graft, _S.DORMANT, _S.GERMINATED, reason=reason)
        self._changed(
            slot, graft, _S.GERMINATED, _S.TRAINING, reason="it passed its checks", passed=change.checks_passed
        )
        if self.config.incubation == "none":
            self._begin_blending(slot, reason="no incubation: it trains with the host")

    def _incubate(self, slot: SeedSlot) -> None:
        """One step of incubation, on the batch of the coming step; or its end."""
        graft, state, config = slot.live_graft, self.state, self.config
        if state.global_step - graft.born_step >= config.incubation_steps:
            self._end_incubation(slot)
            return
        images, labels = self.step.loader.batch(state.epoch, state.step)
        incubate(self.model, slot, images, labels, method=config.incubation, autocast=self.step.autocast())
        self.step.all_reduce_gradients(num_images=len(labels))
        self.optimizer.step()  # only the kernel's parameters have gradients
        self.optimizer.zero_grad(set_to_none=True)
        macs = self.running_macs + self._kernel_cost(graft).num_macs
        state.ledger.incubation_macs += training_macs(self.step.loader.batch_size, macs)

    def _end_incubation(self, slot: SeedSlot) -> None:
        graft, config = slot.live_graft, self.config
        kernel = slot.kernel(graft)
        ranks = self.step.ranks
        ranks.copy_first(kernel.buffers())  # a norm's statistics are those of each process's images
        if not all(bool(p.isfinite().all()) for p in kernel.parameters()):
            self.cull(slot, reason="its weights are not finite after incubation")
            return
        alpha, losses = 1.0, dict[float, float]()
        if config.alpha_search:
            losses = ranks.first(lambda: try_alphas(self.model, slot, self.data.controller))
            alpha = lowest(losses)
            kernel.scale_output(alpha)
            num_images = len(ALPHAS) * self.data.num_controller
            self.state.ledger.incubation_macs += num_images * (self.running_macs + self._kernel_cost(graft).num_macs)
        self.log.incubated(
            graft, method=config.incubation, num_steps=config.incubation_steps, alpha=alpha, losses=losses
        )
        self._begin_blending(slot, reason=f"incubated for {config.incubation_steps} steps, enters times {alpha:g}")

    def _begin_blending(self, slot: SeedSlot, *, reason: str) -> None:
        surgery.begin_blending(slot, step=self.state.global_step, epoch=self.state.epoch)
        self._changed(slot, slot.live_graft, _S.TRAINING, _S.BLENDING, reason=reason)
        if self.config.blending_steps == 0:
            self._blend(slot)

    def _blend(self, slot: SeedSlot) -> None:
        blending_steps = self.config.blending_steps
        if surgery.set_alpha(slot, step=self.state.global_step, blending_steps=blending_steps) == 1.0:
            passed = surgery.hold(slot, epoch=self.state.epoch)
            self._changed(slot, slot.live_graft, _S.BLENDING, _S.HOLDING, reason="alpha is 1", passed=passed)

    def cull(self, slot: SeedSlot, *, reason: str) -> None:
        """Remove the live kernel of a slot."""
        graft, old = slot.live_graft, slot.state
        cost = self._kernel_cost(graft)
        with self.log.operation("cull", graft, self.cost) as operation:
            change = surgery.cull(self.model, graft.site, epoch=self.state.epoch)
            self._release(graft, change.removed)
            optim.check_membership(self.optimizer, self.model)
            operation.after = self.cost
        self.last_adaptation[slot.site.layer] = self.state.epoch
        self._changed(slot, graft, old, _S.CULLED, reason=reason)
        self._changed(slot, graft, _S.CULLED, _S.EMBARGOED, reason="nothing grows here for a while")
        if old is _S.TRAINING:
            return  # it never ran in the host
        joined = self.state.global_step - graft.born_step
        joined -= 0 if self.config.incubation == "none" else self.config.incubation_steps
        self.state.ledger.discarded_macs += training_macs(joined * self.step.loader.batch_size, cost.num_macs)
        # The statistics of the host's norms were gathered with the branch.
        reestimate_norms(self.model, self.data.norm_images())
        self.state.ledger.judging_macs += self.data.num_norm * self.cost.num_macs
        if self.step.ema is not None:
            self.step.ema.restart(step=self.state.global_step)

    def _judge(self, slot: SeedSlot) -> None:
        started = time.monotonic()
        graft = slot.live_graft
        cost = self._kernel_cost(graft)
        self.num_verdicts += 1
        alpha = significance_of(self.num_verdicts, confidence=self.config.judge_confidence)
        verdict = self.step.ranks.first(lambda: self._verdict(slot, cost, alpha=alpha))
        cost_macs = 2 * (self.data.num_judge + self.data.num_norm) * self.cost.num_macs
        self.state.ledger.judging_macs += cost_macs
        self.log.judged(graft, verdict, alpha=alpha, added=cost, cost_macs=cost_macs, cost_s=time.monotonic() - started)
        bound = f"lower bound {verdict.lower_bound:.4f}, threshold {verdict.threshold:.4f}"
        if verdict.kept:
            self._keep(slot, reason=f"kept: {bound}")
        else:
            self.cull(slot, reason=f"not shown to help: {bound}")

    def _verdict(self, slot: SeedSlot, cost: Cost, *, alpha: float) -> Verdict:
        without, with_kernel = paired_losses(
            self.model, slot, judge_batches=self.data.judge, norm_images=self.data.norm_images
        )
        return judge(
            without,
            with_kernel,
            improvement_threshold=self.config.improvement_threshold,
            significance=alpha,
            rent=self.config.cost_rent * cost.num_macs / self.host_cost.num_macs,
        )

    def _keep(self, slot: SeedSlot, *, reason: str) -> None:
        graft = surgery.fossilize(slot, epoch=self.state.epoch)
        self._changed(slot, graft, _S.HOLDING, _S.FOSSILIZED, reason=reason)

    def _init_seed(self, number: int) -> int:
        return derive_seed(self.rng_seed, number)

    def adopt(self, graft: Graft) -> None:
        """Let optimizer and cost follow a kernel that was attached."""
        is_old = graft.born_step == 0  # rebuilt: it is trained like the host
        kernel = self.model.slot(graft.site).kernel(graft)
        # Drawn from the same seed everywhere; processors may still differ in the last bit.
        self.step.ranks.copy_first([*kernel.parameters(), *kernel.buffers()])
        optim.add_parameters(
            self.optimizer,
            self.optimization,
            self.model.graft_parameters(graft),
            born_step=graft.born_step,
            warmup_steps=self.config.newborn_warmup_steps,
            output_scale=kernel.output_scale,
            output_scale_lr_factor=1.0 if is_old else self.config.insertion_gain_rate,
            decayed=is_old or self.config.newborn_weight_decay,
        )
        self.step.add_kernel(kernel, step=self.state.global_step)
        self.cost += self._kernel_cost(graft)
        self.state.peak_parameters = max(self.state.peak_parameters, self.cost.num_parameters)

    def _release(self, graft: Graft, parameters: list[tuple[str, nn.Parameter]]) -> None:
        optim.remove_parameters(self.optimizer, parameters)
        self.step.sync_parameters(step=self.state.global_step)
        self.cost -= self._kernel_costs.pop(graft.graft_id, Cost(num_parameters=0, num_macs=0))

    def _kernel_cost(self, graft: Graft) -> Cost:
        if graft.graft_id not in self._kernel_costs:
            slot = self.model.slot(graft.site)
            self._kernel_costs[graft.graft_id] = count(slot.kernel(graft), slot.site.in_shape)
        return self._kernel_costs[graft.graft_id]

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
        blueprint_id = graft.blueprint_id if graft else None
        self.log.changed(slot.site.name, blueprint_id, old, new, reason=reason, passed=passed)
