"""Copies under the policies that choose which stage to deepen: heuristic, random and schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import journal_of, use
from tests.tolaria.growth.test_stack import stacking

STAGES = ["layer1.1:after", "layer2.1:after", "layer3.1:after"]


def grown(run_dir: Path, policy: str, **changes: Any) -> list[tuple[int, str]]:
    """Epoch and site of the copies of a run of ten epochs with three stages, in order of birth."""
    settings: dict[str, Any] = {
        "model__widths": [4, 6, 8],
        "model__depths": [2, 2, 2],
        "model__target_layers": ["layer1", "layer2", "layer3"],
        "dataset__num_examples": 200,
        "optimization__max_epochs": 10,
        "morphogenetic__policy": policy,
        "morphogenetic__health_threshold": 1.0,
        "morphogenetic__schedule_at": [0.2, 0.5],
    }
    use(stacking(**(settings | changes)), run_dir, lambda trainer: trainer.train())
    decided = [line for line in journal_of(run_dir, "decision") if line["applied"]]
    return [(line["epoch"], line["decision"]["site"]) for line in decided]


@pytest.mark.parametrize("cost", ["site", "macs", "parameters"])
def test_the_heuristic_deepens_the_stage_whose_end_has_the_highest_score(run_dir: Path, cost: str) -> None:
    chosen = grown(run_dir, "heuristic", morphogenetic__score_per=cost)
    assert [epoch for epoch, _ in chosen] == [2, 5]
    assert [line["epoch"] for line in journal_of(run_dir, "signals") if line["cost_macs"]] == [2, 5]
    for epoch, site in chosen:
        (event,) = (line for line in journal_of(run_dir, "signals") if line["epoch"] == epoch)
        signals = {signal["site"]: signal for signal in event["signals"]}
        assert [name for name, signal in signals.items() if signal["health"] is not None] == STAGES
        compared = {
            name: signals[name]["score"] / (1 if cost == "site" else signals[name][f"added_{cost}"]) for name in STAGES
        }
        assert site == max(compared, key=compared.__getitem__)


def test_two_shares_at_once_deepen_the_two_best_stages(run_dir: Path) -> None:
    chosen = grown(run_dir, "heuristic", morphogenetic__schedule_at=[0.2, 0.2])
    (event,) = (line for line in journal_of(run_dir, "signals") if line["epoch"] == 2)
    ranked = sorted(STAGES, key=lambda site: -next(s["score"] for s in event["signals"] if s["site"] == site))
    assert chosen == [(2, ranked[0]), (2, ranked[1])]


def test_a_stage_that_does_not_stand_out_enough_is_not_deepened(run_dir: Path) -> None:
    assert grown(run_dir, "heuristic", morphogenetic__health_threshold=0.01) == []


def test_forks_decide_between_the_two_best_stages(run_dir: Path) -> None:
    ((epoch, site),) = grown(
        run_dir, "heuristic", morphogenetic__fork_steps=3, morphogenetic__schedule_at=[0.2], morphogenetic__judged=True
    )
    forks = journal_of(run_dir, "fork")
    assert epoch == 2
    assert [fork["blueprint_id"] for fork in forks] == ["copy", "copy"]
    assert site == min(forks, key=lambda fork: fork["loss"])["site"]
    assert [verdict["site"] for verdict in journal_of(run_dir, "judgement")] == [site]


def test_a_stage_beyond_the_budget_is_not_deepened(run_dir: Path) -> None:
    # layer1, at full resolution, would add half of the host's MACs; layer3 a fifth.
    added = {"morphogenetic__max_added_macs": 0.25, "morphogenetic__schedule_at": [0.2, 0.5]}
    assert grown(run_dir, "schedule", **added) == [(2, "layer3.1:after")]


def test_a_schedule_deepens_one_stage_after_the_other(run_dir: Path) -> None:
    assert grown(run_dir, "schedule") == [(2, "layer1.1:after"), (5, "layer2.1:after")]


def test_random_stages_are_deepened_at_the_same_shares(run_dir: Path, tmp_path: Path) -> None:
    chosen = grown(run_dir, "random")
    assert [epoch for epoch, _ in chosen] == [2, 5]
    others = [grown(tmp_path / str(seed), "random", rng_seed=seed) for seed in range(1, 5)]
    assert len({site for _, site in sum(others, chosen)}) == 3
