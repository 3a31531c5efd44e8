"""`esper plan` whose pilots are jobs of a real SLURM."""

from __future__ import annotations

import json

import pytest

from tests.forked import ESPER
from tests.planning.test_command import PLAN, TOY
from tests.slurm.conftest import QUEUE, Sweep, command, ended, wait_until

pytestmark = pytest.mark.long


def test_pilots_are_jobs_and_the_same_command_goes_on_after_one_was_cancelled(sweep: Sweep):
    sweep.folder = sweep.cwd / "outputs" / "toy"
    arguments = ("plan", *TOY, *QUEUE, *PLAN)
    held = "+hydra.launcher.additional_parameters.hold=true"  # so short a job may end before it is cancelled
    cut = sweep.start(*arguments, held, script=ESPER)
    wait_until(lambda: len(list(sweep.folder.glob(".sweep/*/job.json"))) == 2, within_s=200)  # host and final size
    cancelled, other = (json.loads(path.read_text())["id"] for path in sweep.folder.glob(".sweep/*/job.json"))
    command("scancel", cancelled)
    command("scontrol", "release", other)
    code, _, err = ended(cut)
    assert (code, "1 of 2 pilots did not finish; the same command goes on with them" in err) == (2, True)
    assert not (sweep.folder / "plan.json").exists()
    code, out, err = sweep.run(*arguments, "--json", script=ESPER)
    assert (code, err.count("pilot "), sweep.statuses()) == (0, 5, ["finished"] * 6)
    assert json.loads(out)["plan"]["question"]["pilot_macs"] > 0
    began = {
        path.parent.name: next(map(json.loads, path.read_text().splitlines()))["resumed_from"]
        for path in sweep.folder.glob("*/journal.jsonl")
    }
    assert sum(path is not None for path in began.values()) == 4  # from another job's trunk
    jobs = {json.loads(path.read_text())["id"] for path in sweep.folder.glob(".sweep/*/job.json")}
    shown = command("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={','.join(map(str, jobs))}")
    assert shown.split().count("COMPLETED") >= 6
