"""How growth is written down: every decision, operation, state and verdict, as events of the journal."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager

from esper.contracts.decisions import AdaptationDecision
from esper.contracts.events import (
    Decided,
    Forked,
    Incubated,
    Judged,
    Scored,
    StateChanged,
    SurgeryEnded,
    SurgeryIntended,
)
from esper.contracts.health import HealthSignal
from esper.contracts.lifecycle import SeedLifecycleState
from esper.contracts.recipe import Graft
from esper.costs import Cost
from esper.tamiyo import Verdict
from esper.tolaria.state import TrainingState
from esper.tracking import Journal

__all__ = ["GrowthLog", "Operation"]


@dataclasses.dataclass(kw_only=True)
class Operation:
    """A change of the architecture under way; whoever makes it sets `after`."""

    before: Cost
    after: Cost


class GrowthLog:
    """Write growth into the journal, stamped with where the training stands."""

    def __init__(self, journal: Journal, state: TrainingState) -> None:
        self._journal = journal
        self._state = state

    def scored(self, signals: list[HealthSignal], *, cost_macs: int, cost_s: float) -> None:
        """What Tamiyo is shown."""
        self._journal.write(
            Scored(
                step=self._state.global_step,
                epoch=self._state.epoch,
                signals=[dataclasses.asdict(signal) for signal in signals],
                cost_macs=cost_macs,
                cost_s=cost_s,
            )
        )

    def decided(self, decision: AdaptationDecision, *, applied: bool, outcome: str) -> None:
        """What Tamiyo asked for, and what came of it."""
        self._journal.write(
            Decided(
                step=self._state.global_step,
                epoch=self._state.epoch,
                decision=dataclasses.asdict(decision),
                applied=applied,
                outcome=outcome,
            )
        )

    def forked(self, graft: Graft, *, num_steps: int, loss: float, cost_macs: int, cost_s: float) -> None:
        """How a short fork ended."""
        self._journal.write(
            Forked(
                step=self._state.global_step,
                epoch=self._state.epoch,
                site=graft.site,
                blueprint_id=graft.blueprint_id,
                num_steps=num_steps,
                loss=loss,
                cost_macs=cost_macs,
                cost_s=cost_s,
            )
        )

    def incubated(self, graft: Graft, *, method: str, num_steps: int, alpha: float, losses: dict[float, float]) -> None:
        """How a module's incubation ended."""
        self._journal.write(
            Incubated(
                step=self._state.global_step,
                epoch=self._state.epoch,
                site=graft.site,
                graft_id=graft.graft_id,
                method=method,
                num_steps=num_steps,
                alpha=alpha,
                losses={f"{tried:g}": loss for tried, loss in losses.items()},
            )
        )

    @contextmanager
    def operation(self, action: str, graft: Graft, cost: Cost) -> Iterator[Operation]:
        """A transaction: the intent before, the commit or the failure after; a body that fails undoes what it began."""
        where = {"graft_id": graft.graft_id, "action": action, "site": graft.site, "blueprint_id": graft.blueprint_id}
        self._journal.write(SurgeryIntended(step=self._state.global_step, **where))  # type: ignore[arg-type]
        started, error = time.monotonic(), None
        operation = Operation(before=cost, after=cost)
        try:
            yield operation
        except Exception as failure:
            error = str(failure)
            raise
        finally:
            self._journal.write(
                SurgeryEnded(
                    step=self._state.global_step,
                    **where,  # type: ignore[arg-type]
                    committed=error is None,
                    error=error,
                    num_parameters_before=operation.before.num_parameters,
                    num_parameters_after=operation.after.num_parameters,
                    num_macs_before=operation.before.num_macs,
                    num_macs_after=operation.after.num_macs,
                    duration_s=time.monotonic() - started,
                )
            )

    def changed(
        self,
        site: str,
        blueprint_id: str | None,
        old: SeedLifecycleState,
        new: SeedLifecycleState,
        *,
        reason: str,
        passed: tuple[str, ...] = (),
    ) -> None:
        """A seed went from one state to the next."""
        self._journal.write(
            StateChanged(
                step=self._state.global_step,
                epoch=self._state.epoch,
                site=site,
                blueprint_id=blueprint_id,
                old=old,
                new=new,
                reason=reason,
                checks_passed=passed,
            )
        )

    def judged(
        self, graft: Graft, verdict: Verdict, *, alpha: float, added: Cost, cost_macs: int, cost_s: float
    ) -> None:
        """The judge's verdict on a kernel."""
        self._journal.write(
            Judged(
                step=self._state.global_step,
                epoch=self._state.epoch,
                graft_id=graft.graft_id,
                site=graft.site,
                blueprint_id=graft.blueprint_id,
                loss_off=verdict.loss_off,
                loss_on=verdict.loss_on,
                gain=verdict.gain,
                lower_bound=verdict.lower_bound,
                threshold=verdict.threshold,
                confidence=1.0 - alpha,
                num_examples=verdict.num_examples,
                kept=verdict.kept,
                added_parameters=added.num_parameters,
                added_macs=added.num_macs,
                cost_macs=cost_macs,
                cost_s=cost_s,
            )
        )
