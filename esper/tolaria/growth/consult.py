"""Growth during a run: advance the seeds at every step and epoch, consult Tamiyo, and carry out her decisions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from esper import tezzeret, urza
from esper.configs.morphogenetic import POLICIES
from esper.contracts.decisions import Action, AdaptationDecision
from esper.contracts.events import MISSED, Decided, Notice
from esper.contracts.lifecycle import SeedLifecycleState
from esper.contracts.recipe import Graft, part_of
from esper.errors import BusError, EsperError, MemoryLimitError, RankError, SurgeryError
from esper.kasmina import MorphableModel
from esper.tamiyo import TamiyoClient
from esper.tamiyo.policies.eligible import eligible, num_due
from esper.tolaria.growth.forks import choose_by_forks
from esper.tolaria.growth.incubation import incubation_step
from esper.tolaria.growth.judging import judge_kernel
from esper.tolaria.growth.lifecycle import Lifecycle
from esper.tolaria.growth.signals import measure_signals, updated
from esper.tolaria.growth.targets import first_blueprint, resolve
from esper.tracking.files import read_recipe

__all__ = ["Growth"]

_S = SeedLifecycleState


class Growth:
    """What growth does at the boundaries of steps and epochs.

    Args:
        life: the seeds of the network, and the settings of growth.
        tamiyo: makes the decisions.
        schedule: the host's learning rate so many steps ahead, for forks.

    Attributes:
        save_before: saves a checkpoint before growth, to go back to.
    """

    def __init__(
        self,
        *,
        life: Lifecycle,
        tamiyo: TamiyoClient,
        schedule: Callable[[int], float],
    ) -> None:
        self.config = life.config
        self.life = life
        self.tamiyo = tamiyo
        self.schedule = schedule
        self.save_before: Callable[[], object] = lambda: None
        self._saved_before = -1  # at this step

    # --- when Tamiyo is consulted ---------------------------------------------------------------------------------

    def is_consultation_due(self) -> bool:
        """Whether to consult Tamiyo at the end of this epoch.

        She is consulted every `adaptation_frequency` epochs, from `growth_from` (or from a plateau of the validation
        loss) until `growth_until`; never if a recipe is replayed or nothing can grow.
        """
        config, epoch = self.config, self.life.state.epoch
        if not config.enable_tamiyo or config.policy == "replay" or not self.life.model.all_slots():
            return False
        if epoch % config.adaptation_frequency:
            return False
        progress = self.life.budget.progress(self.life.state)
        plateau = config.plateau_epochs is not None and self.life.state.epochs_since_best >= config.plateau_epochs
        return progress < config.growth_until and (plateau or progress >= config.growth_from)

    # --- called by the training loop ------------------------------------------------------------------------------

    def begin(self) -> None:
        """With policy=replay, build the recorded network, or part of it, before the first step of a run.

        Raises:
            ConfigError, SurgeryError: the recipe cannot be read, or is not one of this host.
        """
        if self.config.policy == "replay":
            recipe = read_recipe(Path(self.config.recipe_path or ""))
            if self.config.recipe_fraction < 1:
                num_macs = [_macs_of(graft, self.life.model) for graft in recipe]
                recipe = part_of(recipe, self.config.recipe_fraction, num_macs=num_macs)
            self.life.rebuild(recipe)

    def before_step(self) -> None:
        """Do an incubation step, and raise alpha, wherever a kernel incubates or blends."""
        for slot in self.life.model.all_slots():
            if slot.state is _S.TRAINING:
                incubation_step(self.life, slot)
            if slot.state is _S.BLENDING:
                self.life.blend(slot)

    def end_of_epoch(self, *, is_last: bool) -> None:
        """Judge kernels, end embargoes, then consult Tamiyo if that is due."""
        self.life.state.adaptations_this_epoch = 0
        self.advance_seeds(is_last=is_last)
        if not is_last and self.is_consultation_due():
            self._consult()
        self._require_equal_network()
        self._share_ledger()

    def advance_seeds(self, *, is_last: bool) -> None:
        """Judge kernels that were held long enough and end embargoes; after the last epoch no kernel stays live."""
        life, config = self.life, self.config
        for slot in life.model.all_slots():
            num_epochs = life.state.epoch - slot.state_epoch
            if slot.state is _S.HOLDING and (is_last or num_epochs >= config.holding_epochs):
                if config.judged:
                    judge_kernel(life, slot)
                else:
                    life.keep(slot, reason="kept without being judged")
            elif slot.is_live and is_last:
                life.cull(slot, reason="training ended before it reached alpha 1: unmeasured is not healthy")
            elif slot.state is _S.EMBARGOED and num_epochs >= config.adaptation_cooldown:
                life.end_embargo(slot)

    def apply(self, decision: AdaptationDecision) -> bool:
        """Carry out and journal a decision; returns False if it is refused, and then nothing has changed.

        Raises:
            MemoryLimitError: copies of a stage do not fit, and those of another stage have been made for the same
                doubling, which is to be undone as a whole.
        """
        state = self.life.state
        if decision.should_adapt and decision.action is Action.GERMINATE and self._saved_before != state.global_step:
            self.save_before()
            self._saved_before = state.global_step
        try:
            outcome = self._carry_out(decision)
        except RankError:
            raise
        except EsperError as error:
            is_half_done = self.config.policy == "stack" and state.adaptations_this_epoch > 0
            if isinstance(error, MemoryLimitError) and is_half_done:
                raise
            self._require_equal_network()
            self._log(decision, applied=False, outcome=str(error))
            return False
        self._require_equal_network()
        state.adaptations_this_epoch += 1
        state.total_adaptations += 1
        state.last_adaptation_epoch = state.epoch
        self._log(decision, applied=True, outcome=outcome)
        return True

    # --- consulting and deciding ----------------------------------------------------------------------------------

    def _consult(self) -> None:
        """Ask for decisions, on rank 0, and carry them out until Tamiyo requests none or one is refused."""
        life, ranks = self.life, self.life.step.ranks
        progress, last = life.budget.progress(life.state), life.state.last_consultation
        life.state.last_consultation = progress
        due = num_due(progress, life.state.epoch, self.config, last_consultation=last)
        is_due = not self.config.follows_schedule or due[1] > 0
        uses_scores = self.config.policy not in POLICIES or POLICIES[self.config.policy].uses_scores
        with_scores = self.config.always_score or (uses_scores and is_due)
        signals = ranks.on_rank0(
            lambda: measure_signals(life, progress=progress, last_consultation=last, with_scores=with_scores)
        )
        self._share_ledger()
        for _ in range(self.config.max_adaptations_per_epoch):
            try:
                decision = ranks.on_rank0(functools.partial(self.tamiyo.decide, signals))
            except BusError as error:
                self._log(AdaptationDecision(should_adapt=False), applied=False, outcome=f"{MISSED}{error}")
                return
            if not decision.should_adapt:
                self._log(decision, applied=False, outcome="no change was requested")
                return
            if decision.alternatives and self.config.fork_steps:
                decision = choose_by_forks(life, decision, schedule=self.schedule)
            if not self.apply(decision):
                return
            signals = [updated(life, signal) for signal in signals]
        if self.config.policy == "stack" and eligible(signals, self.config):
            message = f"max_adaptations_per_epoch={self.config.max_adaptations_per_epoch}: not every stage was doubled"
            life.emit(Notice, level="WARNING", message=message)

    def _carry_out(self, decision: AdaptationDecision) -> str:
        """Germinate or cull as requested; returns what was done, for the journal."""
        if not decision.should_adapt:
            raise SurgeryError("no change was requested")
        slot = resolve(self.life.model, decision)
        if decision.action is Action.CULL:
            graft = slot.live_graft
            if graft.copy_init == "shared":
                raise SurgeryError(f"{slot.site.name}: copies that share the gain of their source cannot be culled")
            self.life.cull(slot, reason=decision.reasoning or "requested by Tamiyo")
            return f"culled {graft.blueprint_id} at {slot.site.name}"
        blueprint_id = decision.blueprint_id or first_blueprint(self.life, slot)
        self.life.germinate(slot, blueprint_id, reason=decision.reasoning)
        return f"germinated {blueprint_id} at {slot.site.name}"

    def _log(self, decision: AdaptationDecision, *, applied: bool, outcome: str) -> None:
        decided = dataclasses.asdict(decision)
        self.life.emit(Decided, epoch=self.life.state.epoch, decision=decided, applied=applied, outcome=outcome)

    def _share_ledger(self) -> None:
        """Give all ranks what rank 0 has spent: it alone scores and judges, and all need the budget that is left."""
        ranks, state = self.life.step.ranks, self.life.state
        if ranks.size > 1:
            state.ledger = ranks.on_rank0(lambda: state.ledger)

    def _require_equal_network(self) -> None:
        """Check that all ranks have the same network."""
        ranks = self.life.step.ranks
        if ranks.size > 1:
            ranks.require_equal("the network", self.life.model.fingerprint())


def _macs_of(graft: Graft, model: MorphableModel) -> int:
    """MACs of a recorded module that is not built yet; 0 for copies."""
    if graft.sources:
        return 0
    if graft.definition is not None:
        urza.declare(graft.definition, where=f"definition of {graft.blueprint_id}")
    site = model.slot(graft.site).site
    return tezzeret.kernel_cost(graft.blueprint_id, site.in_shape, site.out_shape).num_macs
