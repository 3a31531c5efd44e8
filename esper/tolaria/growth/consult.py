"""When and where a network grows during a training: consult Tamiyo, settle and carry out what she asks for."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path

from esper import tezzeret
from esper.configs import MorphogeneticConfig
from esper.configs.morphogenetic import POLICIES
from esper.contracts.decisions import Action, AdaptationDecision
from esper.contracts.events import MISSED
from esper.contracts.health import HealthSignal
from esper.costs import Cost, training_macs
from esper.errors import BusError, EsperError, RankError, SurgeryError
from esper.kasmina import SeedSlot, surgery
from esper.kasmina.scores import scoring_macs
from esper.tamiyo import TamiyoClient
from esper.tolaria.evaluate import evaluate, lowest
from esper.tolaria.fingerprint import fingerprint
from esper.tolaria.growth.forks import rewound
from esper.tolaria.growth.lifecycle import Lifecycle
from esper.tolaria.growth.signals import measure_signals
from esper.tolaria.growth.targets import first_blueprint, resolve
from esper.tolaria.optim import set_learning_rates
from esper.tracking.files import read_recipe

__all__ = ["Growth"]


class Growth:
    """Ask Tamiyo at the end of epochs, and let `life` do what she decides.

    Args:
        config: when and how to grow.
        life: the seeds of the network.
        tamiyo: who decides.
        schedule: the host's learning rate by step; forks train with it.
        total_epochs: epochs of the whole training.
    """

    def __init__(
        self,
        *,
        config: MorphogeneticConfig,
        life: Lifecycle,
        tamiyo: TamiyoClient,
        schedule: Callable[[int], float],
        total_epochs: int,
    ) -> None:
        self.config = config
        self.life = life
        self.tamiyo = tamiyo
        self.schedule = schedule
        self.total_epochs = total_epochs

    @property
    def times_too_late(self) -> list[float]:
        """Those of `schedule_at` that no consultation before `growth_until` can serve."""

        def served(at: float) -> float:
            every = self.config.adaptation_frequency
            return max(1, math.ceil(at * self.total_epochs / every - 1e-9)) * every / self.total_epochs

        scheduled = self.config.schedule_at if self.config.policy == "schedule" else []
        return [at for at in scheduled if served(at) >= self.config.growth_until]

    # --- called by the trainer ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before the first step of a run: with policy=replay, build the recorded network.

        Raises:
            ConfigError, SurgeryError: the recipe cannot be read, or is not one of this host.
        """
        if self.config.policy == "replay":
            self.life.rebuild(read_recipe(Path(self.config.recipe_path or "")))

    def end_of_epoch(self, *, is_last: bool) -> None:
        """Judge what is due, then consult Tamiyo."""
        self.life.state.adaptations_this_epoch = 0
        self.life.end_of_epoch(is_last=is_last)
        if not is_last and self._is_time():
            self._consult()
        self._agree()

    def apply(self, decision: AdaptationDecision) -> bool:
        """Carry out a decision; one that cannot be is refused, journalled, and changes nothing."""
        try:
            outcome = self._operate(decision)
        except RankError:
            raise
        except EsperError as error:
            self._agree()
            self.life.log.decided(decision, applied=False, outcome=str(error))
            return False
        self._agree()
        self.life.state.adaptations_this_epoch += 1
        self.life.state.total_adaptations += 1
        self.life.state.last_adaptation_epoch = self.life.state.epoch
        self.life.log.decided(decision, applied=True, outcome=outcome)
        return True

    def _agree(self) -> None:
        """Make sure that all processes have the same network."""
        ranks = self.life.step.ranks
        if ranks.size > 1:
            ranks.require_same("the network", fingerprint(self.life.model))

    # --- deciding -------------------------------------------------------------------------------------------------

    def _is_time(self) -> bool:
        config, epoch = self.config, self.life.state.epoch
        if not self.life.model.all_slots() or config.policy == "replay" or epoch % config.adaptation_frequency:
            return False
        progress = epoch / self.total_epochs
        plateau = config.plateau_epochs is not None and self.life.state.epochs_since_best >= config.plateau_epochs
        return progress < config.growth_until and (plateau or progress >= config.growth_from)

    def _consult(self) -> None:
        ranks = self.life.step.ranks
        signals = ranks.first(self._measure)
        for _ in range(self.config.max_adaptations_per_epoch):
            try:
                decision = ranks.first(functools.partial(self.tamiyo.decide, signals))
            except BusError as error:
                nothing = AdaptationDecision(should_adapt=False)
                self.life.log.decided(nothing, applied=False, outcome=f"{MISSED}{error}")
                return
            if not decision.should_adapt:
                self.life.log.decided(decision, applied=False, outcome="nothing was asked for")
                return
            if decision.alternatives and self.config.fork_steps:
                decision = self._settle(decision)
            if not self.apply(decision):
                return
            signals = [self._refreshed(signal) for signal in signals]

    def _measure(self) -> list[HealthSignal]:
        started = time.monotonic()
        macs_left, parameters_left = self._budget_left()
        scored = self.config.always_score or POLICIES[self.config.policy].uses_scores
        signals = measure_signals(
            self.life.model,
            self.life.data.controller() if scored else None,
            epoch=self.life.state.epoch,
            progress=self.life.state.epoch / self.total_epochs,
            last_adaptation=self.life.last_adaptation,
            added=self._added(),
            score_per=self.config.score_per,
            macs_left=macs_left,
            parameters_left=parameters_left,
        )
        num_images = self.life.data.num_controller if scored else 0
        cost_macs = training_macs(num_images, self.life.running_macs) + num_images * scoring_macs(self.life.model)
        self.life.state.ledger.scoring_macs += cost_macs
        self.life.log.scored(signals, cost_macs=cost_macs, cost_s=time.monotonic() - started)
        return signals

    def _added(self) -> dict[str, Cost]:
        """What the preferred blueprint would add at each site where one is allowed."""
        added = {}
        for slot in self.life.model.all_slots():
            with contextlib.suppress(SurgeryError):
                blueprint_id = first_blueprint(slot, self.config)
                added[slot.site.name] = tezzeret.kernel_cost(blueprint_id, slot.site.in_shape, slot.site.out_shape)
        return added

    def _refreshed(self, signal: HealthSignal) -> HealthSignal:
        slot = self.life.model.slot(signal.site)
        macs_left, parameters_left = self._budget_left()
        return dataclasses.replace(
            signal,
            state=slot.state,
            state_epoch=slot.state_epoch,
            num_kernels=len(slot.kept_grafts),
            has_room=slot.has_room,
            last_adaptation_epoch=self.life.last_adaptation.get(signal.layer),
            macs_left=macs_left,
            parameters_left=parameters_left,
        )

    def _budget_left(self) -> tuple[int | None, int | None]:
        """MACs and parameters that growing may still add."""

        def left(share: float | None, host: int, now: int) -> int | None:
            return None if share is None else int(share * host) - (now - host)

        config, host, now = self.config, self.life.host_cost, self.life.cost
        return (
            left(config.max_added_macs, host.num_macs, now.num_macs),
            left(config.max_added_parameters, host.num_parameters, now.num_parameters),
        )

    def _settle(self, decision: AdaptationDecision) -> AdaptationDecision:
        """Choose between a decision's sites by short forks: where the controller split's loss ends lowest.

        A site that refuses its module is out; if all do, the decision stays as it was, and is refused as usual.
        """
        wanted = dict(decision.alternatives)
        with contextlib.suppress(SurgeryError):
            slot = resolve(self.life.model, decision)
            wanted = {slot.site.name: decision.blueprint_id or first_blueprint(slot, self.config), **wanted}
        losses: dict[str, float] = {}
        for site, blueprint_id in wanted.items():
            with contextlib.suppress(EsperError):
                losses[site] = self._fork(self.life.model.slot(site), blueprint_id)
        if not losses:
            return dataclasses.replace(decision, alternatives=())
        best = lowest(losses)
        told = ", ".join(f"{site} {loss:.4f}" for site, loss in losses.items())
        return dataclasses.replace(
            decision,
            site=best,
            target_layer=self.life.model.slot(best).site.layer,
            blueprint_id=wanted[best],
            alternatives=(),
            reasoning=f"{decision.reasoning}; forks of {self.config.fork_steps} steps ended at loss {told}",
        )

    def _fork(self, slot: SeedSlot, blueprint_id: str) -> float:
        """Loss of the controller split after a few steps with a module here, at a rate that decays to 0."""
        started, num_steps, state_epoch = time.monotonic(), self.config.fork_steps, slot.state_epoch
        epoch, born = self.life.state.epoch, self.life.state.global_step
        graft = self.life.new_graft(slot, blueprint_id)
        with rewound(self.life.model, self.life.optimizer, self.life.step):
            self.life.attach(graft)
            try:
                surgery.begin_blending(slot, step=born, epoch=epoch)
                surgery.set_alpha(slot, step=born, blending_steps=0)
                for i in range(num_steps):
                    learning_rate = self.schedule(born + i) * (1.0 - i / num_steps)
                    set_learning_rates(self.life.optimizer, learning_rate, step=born + i)
                    ahead, index = divmod(i, self.life.step.loader.num_batches)
                    self.life.step.forward_backward_update(epoch=epoch + ahead, index=index, step=born + i)
                loss, _ = self.life.step.ranks.first(lambda: evaluate(self.life.model, self.life.data.controller()))
                macs = self.life.running_macs
            finally:
                self.life.undo(graft)
                slot.state_epoch = state_epoch
        cost_macs = (
            training_macs(num_steps * self.life.step.loader.batch_size, macs) + self.life.data.num_controller * macs
        )
        self.life.state.ledger.forking_macs += cost_macs
        self.life.log.forked(
            graft, num_steps=num_steps, loss=loss, cost_macs=cost_macs, cost_s=time.monotonic() - started
        )
        return loss

    # --- doing ----------------------------------------------------------------------------------------------------

    def _operate(self, decision: AdaptationDecision) -> str:
        if not decision.should_adapt:
            raise SurgeryError("nothing was asked for")
        slot = resolve(self.life.model, decision)
        if decision.action is Action.CULL:
            graft = slot.live_graft
            self.life.cull(slot, reason=decision.reasoning or "Tamiyo asked for it")
            return f"culled {graft.blueprint_id} at {slot.site.name}"
        blueprint_id = decision.blueprint_id or first_blueprint(slot, self.config)
        self.life.germinate(slot, blueprint_id, reason=decision.reasoning)
        return f"germinated {blueprint_id} at {slot.site.name}"
