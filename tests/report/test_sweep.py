"""Comparisons of the members of a sweep, grouped by their overrides."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from esper.report.comparison import compare
from esper.report.runs import from_folders
from esper.tracking.files import write_members
from tests.report.test_comparison import compared, write_run


def test_members_of_a_sweep_are_grouped_by_what_was_swept_and_not_by_what_follows_from_it(tmp_path: Path) -> None:
    members: dict[str, list[str]] = {}
    for growth, rate in itertools.product(("off", "default"), (0.1, 0.2)):
        for seed in range(3):
            name = f"{growth}-{rate}-{seed}"
            given = ["tracking=none", f"morphogenetic={growth}", f"optimization.learning_rate={rate}"]
            members[name] = [*given, f"rng_seed={seed}", "dataset=synthetic"]
            is_on = growth == "default"
            changes = {"morphogenetic__enable_tamiyo": is_on, "optimization__learning_rate": rate}
            write_run(tmp_path / name, rng_seed=seed, accuracy=0.8 + is_on / 10 + seed / 100, **changes)
    write_members(tmp_path, members)
    report = compared(tmp_path)
    assert list(report.arms) == [
        "morphogenetic=default, learning_rate=0.1",
        "morphogenetic=default, learning_rate=0.2",
        "morphogenetic=off, learning_rate=0.1",
        "morphogenetic=off, learning_rate=0.2",
    ]
    assert report.arms["morphogenetic=off, learning_rate=0.1"]["test_accuracy"] == pytest.approx((0.81, 0.0248), 1e-2)
    assert not any("arms also differ" in warning for warning in report.comparison.warnings)


@pytest.mark.parametrize("is_same", [True, False])
def test_arms_that_train_the_same_under_two_names_are_told(tmp_path: Path, is_same: bool) -> None:
    members = {}
    for name, rate in (("default", 0.1), ("off", 0.1), ("stack", 0.1 if is_same else 0.2)):
        for seed in range(2):
            members[f"{name}-{seed}"] = [f"morphogenetic={name}", f"rng_seed={seed}"]
            changes = {"morphogenetic__enable_tamiyo": name != "off", "optimization__learning_rate": rate}
            write_run(tmp_path / f"{name}-{seed}", rng_seed=seed, **changes)
    write_members(tmp_path, members)
    told = [warning for warning in compared(tmp_path).comparison.warnings if "equal settings" in warning]
    same = (
        "morphogenetic=default and morphogenetic=stack have equal settings: with one seed they are the same training."
    )
    assert told == ([same] if is_same else [])


@pytest.mark.parametrize("override", ["bus=redis", "redis=embedded", "device=cuda", "hydra/launcher=slurm"])
def test_overrides_that_do_not_change_what_is_trained_do_not_split_an_arm(tmp_path: Path, override: str) -> None:
    for seed in range(2):
        write_run(tmp_path / str(seed), rng_seed=seed)
    write_members(tmp_path, {"0": ["rng_seed=0"], "1": ["rng_seed=1", override]})
    assert list(compared(tmp_path).arms) == ["all runs"]


def test_arms_that_were_swept_with_something_else_are_told_apart_by_both(tmp_path: Path) -> None:
    members = {}
    for arm, size in itertools.product(("grown", "static"), (16, 32)):
        members[f"{arm}-{size}"] = [f"arm={arm}", f"dataset.batch_size={size}"]
        write_run(tmp_path / f"{arm}-{size}", comparison__arm=arm, dataset__batch_size=size)
    write_members(tmp_path, members)
    labels = [f"arm={arm}, dataset.batch_size={size}" for arm in ("grown", "static") for size in (16, 32)]
    assert list(compared(tmp_path).arms) == labels


def test_a_run_that_only_lies_in_the_folder_of_a_sweep_is_left_out_unless_it_is_named(tmp_path: Path) -> None:
    for name in ("a", "b", "other"):
        write_run(tmp_path / name, dataset__batch_size=16 if name == "a" else 32, rng_seed=int(name == "other"))
    write_members(tmp_path, {"a": ["dataset.batch_size=16"], "b": ["dataset.batch_size=32"]})
    report = compared(tmp_path)
    assert [arm["n"] for arm in report.arms.values()] == [1, 1]
    assert [(left.run.name, left.reason) for left in report.comparison.left_out] == [("other", "not in the sweep")]
    named = compare(from_folders([tmp_path / name for name in ("a", "b", "other")]))
    assert [arm["n"] for arm in named.arms.values()] == [1, 2]


def test_a_verdict_that_is_the_headline_keeps_the_arm_as_it_was_asked_for(tmp_path: Path) -> None:
    for growth in ("off", "default"):
        write_run(tmp_path / growth, morphogenetic__enable_tamiyo=growth == "default")
    write_members(tmp_path, {growth: [f"morphogenetic={growth}"] for growth in ("off", "default")})
    assert compared(tmp_path).headline.startswith("morphogenetic=default against morphogenetic=off: not shown")


def test_without_a_baseline_the_arm_to_choose_is_the_one_with_the_best_validation(tmp_path: Path) -> None:
    for rate, accuracy in ((0.1, 0.7), (0.2, 0.8)):
        name = f"lr-{rate}"
        write_run(tmp_path / name, accuracy=accuracy, val_accuracy=1 - accuracy, optimization__learning_rate=rate)
    assert compared(tmp_path).headline == "Highest validation accuracy: optimization.learning_rate=0.1, 30.00 %."
