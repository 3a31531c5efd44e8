from __future__ import annotations

from pathlib import Path

from esper.sweep.manifest import Member, labels


def members(*overrides: str) -> list[Member]:
    return [
        Member(sweep_dir=Path("sweep"), name=f"run-{index}", overrides=tuple(one.split()), cwd=".", siblings={})
        for index, one in enumerate(overrides)
    ]


def test_a_label_holds_the_overrides_that_members_do_not_share():
    sweep = members("model=resnet18 optimization.learning_rate=0.1", "model=resnet18 optimization.learning_rate=0.2")
    assert labels(sweep) == {"run-0": "learning_rate=0.1", "run-1": "learning_rate=0.2"}


def test_members_without_a_unique_label_keep_their_names():
    assert labels(members("a.x=1", "a.x=1 b.y=2")) == {"run-0": "run-0", "run-1": "y=2"}
    assert labels(members("a.x=1 c=3", "b.x=1 c=3")) == {"run-0": "run-0", "run-1": "run-1"}
    assert labels(members("a.x=1")) == {"run-0": "run-0"}
