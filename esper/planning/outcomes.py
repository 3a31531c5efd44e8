"""Plans and what became of them: the runs that have finished since, and a policy learned from both (`esper simic`)."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from esper.errors import RunError
from esper.planning import record
from esper.planning.family import read_family
from esper.planning.learned import cell_of
from esper.planning.observations import Observation
from esper.planning.observed import finished_runs, observations
from esper.planning.record import PlanRecord
from esper.simic import growth

__all__ = ["learn", "read_outcomes"]


def read_outcomes(folder: Path) -> tuple[PlanRecord, list[Observation]]:
    """The plan in a folder, and the runs of its family that have finished there since it was made.

    Raises:
        EsperError: there is no plan, it is damaged, or was made for settings that cannot be read any more.
    """
    made = record.read(folder / "plan.json")
    if made.decision is None:
        raise RunError(f"{folder / 'plan.json'}: does not say which settings it was made for; make a plan again")
    known = dataclasses.replace(read_family(made.decision.overrides, fractions=made.fractions), folder=folder)
    earlier = {one.run for one in made.observations}
    runs = [run for run in finished_runs(known) if run.run_dir.name not in earlier]
    return made, observations(runs, known, pilots=())


def learn(folders: Sequence[Path], out: Path) -> int:
    """Learn from the plans in some folders when to grow, judge that, and write it; returns the exit code.

    Raises:
        EsperError: as `read_outcomes`; or no plan has outcomes of all its sizes, and of growing.
    """
    cells = []
    for folder in folders:
        made, found = read_outcomes(folder)
        assert made.decision is not None, "its family was read"
        cell = cell_of(made.plan, found, family=made.decision.family)
        if cell is None:
            sys.stderr.write(f"{folder}: left out: some size, or growing at about 30 %, has no run since that plan\n")
        else:
            cells.append(cell)
    if not cells:
        raise RunError(
            "no plan has outcomes to learn from: train every size, and growing at 30 %, with the budget of the plan"
        )
    policy = growth.learn(cells)
    growth.write(policy, out)
    sys.stdout.write(f"{out} is {policy.verdict}\n")
    return 0
