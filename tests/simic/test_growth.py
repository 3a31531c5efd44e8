from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from esper.errors import RunError
from esper.simic.growth import FEATURES, GROWN, Cell, learn, read, write


def cell(
    family: int, feature: float, lead: float, *, cost: float = 0.0, planned: str = "final", macs: float = 1
) -> Cell:
    """Growing ends ahead of the final size by `lead`; the host is the worst."""
    return Cell(
        family=f"family {family}",
        macs=macs,
        features=(feature, *(0.0 for _ in FEATURES[1:])),
        figures={"host": -10.0, "final": 0.0, GROWN: lead},
        costs=dict.fromkeys(("host", "final", GROWN), cost),
        planned=planned,
        static="final",
    )


def cells(*, cost: float = 0.0, planned: str = "final", families: int = 4) -> list[Cell]:
    """Of three plans a family, growing is the best in one or two, as the first feature says."""
    leads = [(-4.0, -2.0, 3.0), (-3.0, 2.0, 4.0)]
    return [
        cell(family, lead, lead, cost=cost, planned=planned, macs=2.0**index)
        for family in range(families)
        for index, lead in enumerate(leads[family % 2])
    ]


def test_a_policy_that_beats_all_fixed_choices_and_the_plan_on_families_left_out_is_active() -> None:
    policy = learn(cells())
    assert policy.is_active, policy.verdict
    assert policy.regrets == pytest.approx(
        {
            "the policy": 0.0,
            "the plan without it": 1.5,
            "always the final size": 1.5,
            "always growing at 30 %": 1.5,
            "always the host": 11.5,
        }
    )
    assert policy.lead(cell(0, 3, 0).features) > 0 > policy.lead(cell(0, -3, 0).features)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (cells(families=3), "outcomes of 12 plans from 4 families; there are 9 from 3"),
        (cells()[:3], "outcomes of 12 plans from 4 families; there are 3 from 1"),
        ([dataclasses.replace(one, macs=1.0) for one in cells()], "there are 4 from 4"),
        (cells(cost=2.0), "loses 2.00 times .* and always .* 1.50 .difference -0.50"),
        (
            [cell(n % 4, n, 1 + n % 2, macs=2.0**n) for n in range(12)],
            r"always growing at 30 % 0.00 .difference \+0.00",
        ),
        (
            [dataclasses.replace(one, planned=GROWN if one.figures[GROWN] > 0 else "final") for one in cells()],
            "and the plan without it 0.00",
        ),
    ],
)
def test_a_policy_that_does_not_beat_them_all_or_was_learned_from_little_is_off(given: list[Cell], reason: str) -> None:
    policy = learn(given)
    assert not policy.is_active
    assert policy.verdict.startswith("off: ")
    assert re.search(reason, policy.verdict)


@pytest.mark.parametrize("num_with", [12, 11])
def test_a_size_in_between_is_a_rival_if_all_plans_have_it(num_with: int) -> None:
    better = {"between": 4.5}  # than all else
    given = [
        dataclasses.replace(one, figures=one.figures | better) if index < num_with else one
        for index, one in enumerate(cells())
    ]
    policy = learn(given)
    assert policy.is_active == (num_with < 12)
    assert policy.regrets.get("always the size in between") == (0 if num_with == 12 else None)


def test_a_family_is_judged_by_what_was_learned_from_the_others() -> None:
    contrary = [cell(0, 2, -2), cell(0, -2, 2)]
    policy = learn([*contrary, cell(1, 2, 2), cell(1, -2, -2), cell(1, 3, 3), cell(1, -3, -3)])
    assert policy.regrets["the policy"] == pytest.approx((2.0 + 2.5) / 2)


def test_being_ahead_of_the_plan_in_one_family_alone_is_within_the_standard_error() -> None:
    given = [dataclasses.replace(one, planned=GROWN if one.figures[GROWN] > 0 else "final") for one in cells()]
    given = [dataclasses.replace(one, planned="final") if one.family == "family 0" else one for one in given]
    policy = learn([*given, cell(1, 3, -1, macs=16.0)])
    assert policy.regrets["the policy"] < policy.regrets["the plan without it"] - 0.1
    assert "and the plan without it" in policy.verdict
    assert not policy.is_active


def test_a_policy_is_read_as_it_was_written_and_one_of_another_version_is_refused(tmp_path: Path) -> None:
    policy, path = learn(cells()), tmp_path / "policy.json"
    write(policy, path)
    assert read(path) == policy
    for change in ({"features": FEATURES[:1]}, {"weights": (1.0,)}):
        write(dataclasses.replace(policy, **change), path)  # type: ignore[arg-type]
        with pytest.raises(RunError, match="another version"):
            read(path)
    with pytest.raises(RunError, match="no such file"):
        read(tmp_path / "other.json")
