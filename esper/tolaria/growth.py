"""Growing during a training: consult Tamiyo, operate, blend, judge, keep or cull, and write down all of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from esper import tezzeret, urza
from esper.configs import MorphogeneticConfig, OptimizationConfig
from esper.contracts.decisions import Action, AdaptationDecision
from esper.contracts.health import HealthSignal
from esper.contracts.lifecycle import SeedLifecycleState
from esper.contracts.recipe import Graft
from esper.errors import EsperError, SurgeryError
from esper.kasmina import MorphableModel, SeedSlot, surgery
from esper.kasmina.statistics import reestimate_norms
from esper.tamiyo import TamiyoClient, judge, spend
from esper.tolaria import optim
from esper.tolaria.growth_log import GrowthLog
from esper.tolaria.judging import paired_losses
from esper.tolaria.signals import measure_signals
from esper.tolaria.state import TrainingState
from esper.tracking import Journal

__all__ = ["Growth", "GrowthData"]

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


class Growth:
    """Owner of everything that changes the architecture during a run.

    It shares `state` with the trainer and adds to its adaptation counters and `growth_macs`.
    """

    def __init__(
        self,
        *,
        config: MorphogeneticConfig,
        optimization: OptimizationConfig,
        model: MorphableModel,
        optimizer: Optimizer,
        tamiyo: TamiyoClient,
        data: GrowthData,
        journal: Journal,
        state: TrainingState,
        rng_seed: int,
        total_epochs: int,
        host_cost: tezzeret.Cost,
    ) -> None:
        self.config = config
        self.optimization = optimization
        self.model = model
        self.optimizer = optimizer
        self.tamiyo = tamiyo
        self.data = data
        self.log = GrowthLog(journal, state)
        self.state = state
        self.rng_seed = rng_seed
        self.total_epochs = total_epochs
        self.cost = host_cost
        self.num_germinated = 0
        self.num_verdicts = 0
        self.last_adaptation: dict[str, int] = {}

    # --- called by the trainer ------------------------------------------------------------------------------------

    def before_step(self) -> None:
        """Raise the alpha of blending kernels for the coming step."""
        for slot in self.model.all_slots():
            if slot.state is _S.BLENDING:
                self._blend(slot)

    def end_of_epoch(self, *, is_last: bool) -> None:
        """Judge what is due, end embargoes, and consult Tamiyo; after the last epoch nothing stays undecided."""
        self.state.adaptations_this_epoch = 0
        epoch = self.state.epoch
        for slot in self.model.all_slots():
            held = epoch - slot.state_epoch
            if slot.state is _S.HOLDING and (is_last or held >= self.config.holding_epochs):
                self._judge(slot)
            elif slot.is_live and is_last:
                self._cull(slot, reason="training ended before it reached alpha 1: unmeasured is not healthy")
            elif slot.state is _S.EMBARGOED and held >= self.config.adaptation_cooldown:
                slot.enter(_S.DORMANT, epoch=epoch)
                self._changed(slot, None, _S.EMBARGOED, _S.DORMANT, reason="the embargo is over")
        progress = epoch / self.total_epochs
        if is_last or not self.model.all_slots():
            return
        if epoch % self.config.adaptation_frequency == 0 and progress < self.config.growth_until:
            self._consult(progress)

    def apply(self, decision: AdaptationDecision) -> bool:
        """Carry out a decision; one that cannot be is refused, journalled, and changes nothing."""
        try:
            outcome = self._operate(decision)
        except EsperError as error:
            self.log.decided(decision, applied=False, outcome=str(error))
            return False
        self.state.adaptations_this_epoch += 1
        self.state.total_adaptations += 1
        self.state.last_adaptation_epoch = self.state.epoch
        self.log.decided(decision, applied=True, outcome=outcome)
        return True

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
            optim.adopt(
                self.optimizer, self.optimization, self.model.graft_parameters(graft), born_step=graft.born_step
            )
            self.cost += self._kernel_cost(graft)

    # --- deciding -------------------------------------------------------------------------------------------------

    def _consult(self, progress: float) -> None:
        signals = self._measure(progress)
        for _ in range(self.config.max_adaptations_per_epoch):
            decision = self.tamiyo.decide(signals)
            if not decision.should_adapt:
                self.log.decided(decision, applied=False, outcome="nothing was asked for")
                return
            if not self.apply(decision):
                return
            signals = [self._refreshed(signal) for signal in signals]

    def _measure(self, progress: float) -> list[HealthSignal]:
        started = time.monotonic()
        signals = measure_signals(
            self.model,
            self.data.controller(),
            epoch=self.state.epoch,
            progress=progress,
            last_adaptation=self.last_adaptation,
        )
        cost_macs = 3 * self.data.num_controller * self.cost.num_macs
        self.state.growth_macs += cost_macs
        self.log.scored(signals, cost_macs=cost_macs, cost_s=time.monotonic() - started)
        return signals

    def _refreshed(self, signal: HealthSignal) -> HealthSignal:
        slot = self.model.slot(signal.site)
        return dataclasses.replace(
            signal,
            state=slot.state,
            state_epoch=slot.state_epoch,
            num_kernels=len(slot.kept_grafts),
            has_room=slot.has_room,
            last_adaptation_epoch=self.last_adaptation.get(signal.layer),
        )

    # --- operating ------------------------------------------------------------------------------------------------

    def _operate(self, decision: AdaptationDecision) -> str:
        if not decision.should_adapt:
            raise SurgeryError("nothing was asked for")
        slot = self._resolve(decision)
        if decision.action is Action.CULL:
            graft = slot.live_graft
            self._cull(slot, reason=decision.reasoning or "Tamiyo asked for it")
            return f"culled {graft.blueprint_id} at {slot.site.name}"
        blueprint_id = decision.blueprint_id or self._first_blueprint(slot)
        self._germinate(slot, blueprint_id, reason=decision.reasoning)
        return f"germinated {blueprint_id} at {slot.site.name}"

    def _resolve(self, decision: AdaptationDecision) -> SeedSlot:
        if decision.site is not None:
            return self.model.slot(decision.site)
        layer = decision.target_layer
        slots = [slot for slot in self.model.all_slots() if layer in (slot.site.layer, slot.site.block)]
        if not slots:
            layers = ", ".join(dict.fromkeys(slot.site.layer for slot in self.model.all_slots()))
            raise SurgeryError(f"no layer {layer!r}; this network may grow in: {layers or 'none'}")
        free = [slot for slot in slots if slot.is_live == (decision.action is Action.CULL)]
        if decision.action is Action.GERMINATE:
            free = [slot for slot in free if slot.state is _S.DORMANT and slot.has_room]
        if not free:
            raise SurgeryError(f"no seed of layer {layer!r} can {decision.action} now")
        return free[0]

    def _first_blueprint(self, slot: SeedSlot) -> str:
        config, site = self.config, slot.site
        fitting = urza.fitting(
            site.kind,
            site.in_shape,
            site.out_shape,
            categories=config.blueprint_categories,
            max_complexity=config.max_blueprint_complexity,
            only=config.blueprint,
        )
        if not fitting:
            raise SurgeryError(f"no allowed blueprint fits site {site.name!r}")
        return fitting[0].blueprint_id

    def _germinate(self, slot: SeedSlot, blueprint_id: str, *, reason: str) -> None:
        graft = Graft(
            graft_id=self.num_germinated + 1,
            site=slot.site.name,
            blueprint_id=urza.get(blueprint_id).blueprint_id,  # an unknown name is refused before anything is intended
            init_seed=self.rng_seed * 1_000_003 + self.num_germinated + 1,
            init_gain=self.config.insertion_gain if self.config.insertion == "gain" else 0.0,
            born_step=self.state.global_step,
        )
        with self.log.operation("germinate", graft, self.cost) as operation:
            change = surgery.germinate(self.model, graft, images=self.data.sample(), epoch=self.state.epoch)
            try:
                optim.adopt(self.optimizer, self.optimization, change.added, born_step=graft.born_step)
                optim.check_membership(self.optimizer, self.model)
            except BaseException:
                optim.release(self.optimizer, change.added)
                surgery.abort(self.model, graft)
                raise
            operation.after = self.cost = self.cost + self._kernel_cost(graft)
        self.num_germinated += 1
        self.last_adaptation[slot.site.layer] = self.state.epoch
        self._changed(slot, graft, _S.DORMANT, _S.GERMINATED, reason=reason)
        self._changed(
            slot, graft, _S.GERMINATED, _S.TRAINING, reason="it passed its checks", passed=change.checks_passed
        )
        surgery.begin_blending(slot, step=self.state.global_step, epoch=self.state.epoch)
        self._changed(slot, graft, _S.TRAINING, _S.BLENDING, reason="no incubation: it trains with the host")
        if self.config.blending_steps == 0:
            self._blend(slot)

    def _blend(self, slot: SeedSlot) -> None:
        blending_steps = self.config.blending_steps
        if surgery.set_alpha(slot, step=self.state.global_step, blending_steps=blending_steps) == 1.0:
            passed = surgery.hold(slot, epoch=self.state.epoch)
            self._changed(slot, slot.live_graft, _S.BLENDING, _S.HOLDING, reason="alpha is 1", passed=passed)

    def _cull(self, slot: SeedSlot, *, reason: str) -> None:
        graft, old = slot.live_graft, slot.state
        with self.log.operation("cull", graft, self.cost) as operation:
            cost_after = self.cost - self._kernel_cost(graft)
            change = surgery.cull(self.model, graft.site, epoch=self.state.epoch)
            optim.release(self.optimizer, change.removed)
            optim.check_membership(self.optimizer, self.model)
            operation.after = self.cost = cost_after
        self.last_adaptation[slot.site.layer] = self.state.epoch
        self._changed(slot, graft, old, _S.CULLED, reason=reason)
        self._changed(slot, graft, _S.CULLED, _S.EMBARGOED, reason="nothing grows here for a while")
        # The statistics of the host's norms were gathered with the branch.
        reestimate_norms(self.model, self.data.norm_images())
        self.state.growth_macs += self.data.num_norm * self.cost.num_macs

    def _judge(self, slot: SeedSlot) -> None:
        started = time.monotonic()
        graft = slot.live_graft
        self.num_verdicts += 1
        alpha = spend(self.config.judge_confidence, self.num_verdicts)
        without, with_kernel = paired_losses(
            self.model, slot, judge_batches=self.data.judge, norm_images=self.data.norm_images
        )
        verdict = judge(without, with_kernel, improvement_threshold=self.config.improvement_threshold, alpha=alpha)
        cost_macs = 2 * (self.data.num_judge + self.data.num_norm) * self.cost.num_macs
        self.state.growth_macs += cost_macs
        self.log.judged(
            graft,
            verdict,
            alpha=alpha,
            added=self._kernel_cost(graft),
            cost_macs=cost_macs,
            cost_s=time.monotonic() - started,
        )
        bound = f"lower bound {verdict.lower_bound:.4f}, threshold {verdict.threshold:.4f}"
        if verdict.kept:
            surgery.fossilize(slot, kept_by_judge=True, epoch=self.state.epoch)
            self._changed(slot, graft, _S.HOLDING, _S.FOSSILIZED, reason=f"kept: {bound}", passed=("kept_by_judge",))
        else:
            self._cull(slot, reason=f"not shown to help: {bound}")

    def _kernel_cost(self, graft: Graft) -> tezzeret.Cost:
        slot = self.model.slot(graft.site)
        return tezzeret.count(slot.kernel(graft), slot.site.in_shape)

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
        blueprint_id = graft.blueprint_id if graft else None
        self.log.changed(slot.site.name, blueprint_id, old, new, reason=reason, passed=passed)
