"""What is shown of a plan: the table, plan.json, plan.html, and the comparison with what was found."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import plan_picture
from esper.contracts.metrics import ACCURACY
from esper.errors import RunError
from esper.planning import check, page, plots, record, table
from esper.planning.judge import judge
from esper.planning.observations import Choice
from esper.planning.record import PlanRecord
from tests.planning.worlds import BUDGET, pilots, question, random_world
from tests.report import drawn


@pytest.fixture(scope="module")
def made() -> PlanRecord:
    rng = np.random.default_rng(3)
    seen = tuple(pilots(random_world(rng), rng))
    plan = judge(question(pilot_macs=5.0), seen, num_draws=40)
    return PlanRecord(plan=plan, observations=seen, command="esper-train 'a=[1,2]' b=<c>")


def test_a_plan_is_read_as_it_was_written_and_is_strict_json(made: PlanRecord, tmp_path: Path) -> None:
    record.write(made, tmp_path / "plan.json")
    assert record.read(tmp_path / "plan.json") == made
    json.loads((tmp_path / "plan.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize("content", [None, "{", '{"plan": 3}'])
def test_a_missing_or_damaged_plan_is_one_line(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "plan.json").write_text(content)
    with pytest.raises(
        RunError, match=r"plan\.json.*; (make one with esper plan|the command that made the plan|plan again)"
    ):
        record.read(tmp_path / "plan.json")


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_the_terminal_and_has_every_option(made: PlanRecord, columns: int) -> None:
    console = Console(width=columns)
    with console.capture() as capture:
        for part in table.printed(made.plan, columns=columns, command=made.command):
            console.print(part)
    text = capture.get()
    assert "…" not in text
    assert made.plan.why in " ".join(text.split())
    for label in ("host, trained longer", "a size in between", "final size", "grow at 10 %", "grow at 50 %"):
        assert label in text
    assert " ".join(made.command.split()) in " ".join(text.split())


def test_the_page_in_the_docs_is_made_from_twenty_trainings(tmp_path: Path) -> None:
    plan_picture.main([str(tmp_path / "plan.html")])
    html = (tmp_path / "plan.html").read_text()
    assert "3 sizes and 20 finished trainings" in html
    assert "267 T" in html


def test_the_page_is_self_contained_and_has_the_reason_the_command_and_every_option(made: PlanRecord) -> None:
    html = page.render(made)
    assert made.plan.reason.replace(" %", "\u00a0%").replace("'", "&#39;") in html
    assert made.plan.why.replace(" %", "\u00a0%").replace("'", "&#39;") in html
    assert "b=&lt;c&gt;" in html
    assert html.count("grow at") >= 5
    assert not re.search(r"(src|href)=.https?:", html)
    assert html.count("<svg") == 2


@pytest.mark.parametrize("scale", [0.002, 0.3])
def test_axes_of_a_percentage_end_at_100_percent(made: PlanRecord, scale: float) -> None:
    seen = [dataclasses.replace(one, figure=min(1.0, 1 - scale * (one.loss - 1.0))) for one in made.observations]
    plan = judge(dataclasses.replace(question(pilot_macs=5.0), headline=ACCURACY), seen, num_draws=40)
    across, _ = drawn.limits(plots, lambda: plots.predictions(plan))
    _, up = drawn.limits(plots, lambda: plots.curves(plan, seen))
    for low, high in (across, up):
        assert 0 <= low < high <= 100


def test_runs_are_compared_with_what_was_predicted_of_them(made: PlanRecord) -> None:
    best, other = made.plan.options[0], next(one for one in made.plan.options if one.choice != made.plan.recommended)
    runs = [
        dataclasses.replace(
            made.observations[0],
            size=option.choice.size,
            macs=option.macs,
            host_macs=(option.choice.share or 0) * option.macs,
            figure=option.figure.expected + lost,
        )
        for option, lost in ((best, 0.0), (other, -10.0))
    ]
    inside, outside = check.check(made, runs)
    assert (inside.is_planned, inside.predicted, inside.is_inside) == (True, best.figure, True)
    assert not outside.is_inside
    console = Console(width=80)
    with console.capture() as capture:
        for part in check.printed([inside, outside], made.plan):
            console.print(part)
    assert "1 of 2 runs" in capture.get()
    assert "the recommended" in capture.get()


def test_a_run_with_another_budget_is_compared_with_the_curves(made: PlanRecord) -> None:
    option = next(one for one in made.plan.options if one.choice == Choice(size="final"))
    run = dataclasses.replace(made.observations[0], size="final", macs=BUDGET / 2, figure=option.figure.expected)
    (checked,) = check.check(made, [run])
    assert not checked.is_planned
    assert checked.predicted.expected > option.figure.expected  # less compute, more loss
