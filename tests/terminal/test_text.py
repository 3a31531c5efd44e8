from __future__ import annotations

from pathlib import Path

import pytest

from esper.sweep.labels import labels
from esper.sweep.manifest import Member
from esper.terminal.text import duration


def members(*overrides: str) -> list[Member]:
    return [
        Member(sweep_dir=Path("sweep"), name=f"run-{index}", overrides=tuple(one.split()), cwd=".", siblings={})
        for index, one in enumerate(overrides)
    ]


def test_a_member_is_called_what_tells_it_from_the_others():
    swept = members("model=resnet18 optimization.learning_rate=0.1", "model=resnet18 optimization.learning_rate=0.2")
    assert labels(swept) == {"run-0": "learning_rate=0.1", "run-1": "learning_rate=0.2"}


def test_members_that_nothing_tells_apart_keep_their_names():
    assert labels(members("a.x=1", "a.x=1 b.y=2")) == {"run-0": "run-0", "run-1": "y=2"}
    assert labels(members("a.x=1 c=3", "b.x=1 c=3")) == {"run-0": "run-0", "run-1": "run-1"}
    assert labels(members("a.x=1")) == {"run-0": "run-0"}


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.2, "1 s"), (59.2, "1 min"), (3599, "59 min"), (3600, "1 h 00 min"), (86520, "24 h 02 min")]
)
def test_a_duration_is_told_in_its_two_largest_units(seconds: float, told: str):
    assert duration(seconds) == told
