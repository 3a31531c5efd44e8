"""Did growing pay? Against the best static arm, at each budget."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esper.cli import main
from esper.configs import ComparisonConfig
from esper.configs.comparison import ARMS
from esper.contracts.metrics import ACCURACY
from esper.report.comparison import Report, compare, write
from esper.report.comparison_plots import figure_against
from esper.report.figure import embed
from esper.report.runs import from_folders
from tests.report.test_comparison import _MACS, compared, verdicts, write_arms, write_run

EQUAL = ("static_flops", "between_flops", "final_flops")


def write_equal(folder: Path, *accuracies: float, grown: float = 0.9, **more: tuple[float, float]) -> None:
    """Grown, and the static arms at equal compute in order of size, with others."""
    arms = dict(zip(EQUAL, [(accuracy, _MACS) for accuracy in accuracies], strict=False))
    write_arms(folder, {"grown": (grown, _MACS), **arms, **more})


def best(report: Report) -> str | None:
    (answer,) = report.answers
    return answer.best


@pytest.mark.parametrize(
    ("accuracies", "answer"),
    [
        ((0.85, 0.84, 0.83), "Yes: against the best static arm at equal compute (host, trained longer), +5.0"),
        ((0.84, 0.85, 0.83), "Yes: against the best static arm at equal compute (a size in between), +"),
        ((0.85, 0.95, 0.84), "No: against the best static arm at equal compute (a size in between), -"),
        ((0.85, 0.84, 0.95), "No: against the best static arm at equal compute (final size from scratch), -"),
        ((0.85, 0.84, 0.8978), "Not shown: against the best static arm at equal compute (final size from scratch), "),
    ],
)
def test_growing_paid_if_it_beats_the_best_static_size(
    tmp_path: Path, accuracies: tuple[float, ...], answer: str
) -> None:
    write_equal(tmp_path, *accuracies)
    report = compared(tmp_path)
    assert report.headline.startswith(f"Did growing pay? {answer}")
    assert len(report.claims) == 3


def test_the_best_static_arm_is_chosen_by_validation_and_not_by_test_accuracy(tmp_path: Path) -> None:
    write_equal(tmp_path, 0.84, 0.84)
    for seed in range(12):
        write_run(
            tmp_path / f"final_flops-{seed}", accuracy=0.83, val_accuracy=0.95, rng_seed=seed,
            comparison=ComparisonConfig(arm="final_flops"),
        )  # fmt: skip
    report = compared(tmp_path)
    assert best(report) == "final_flops"
    choice = report.answers[0].choice
    assert choice.startswith("The best static arm at equal compute is final size from scratch: the highest mean valid")
    assert "chosen without the test split (host, trained longer 83.95 %; " in choice
    assert "final size from scratch 95.00 %)" in choice


def test_it_is_chosen_once_over_the_seeds_that_all_static_arms_have(tmp_path: Path) -> None:
    write_equal(tmp_path, 0.80, 0.81, 0.82)
    write_run(tmp_path / "lucky", accuracy=1.0, rng_seed=99, comparison=ComparisonConfig(arm="static_flops"))
    report = compared(tmp_path)
    assert best(report) == "final_flops"
    assert "over 12 seeds" in report.answers[0].choice


def test_an_arm_with_few_seeds_is_not_the_best_one(tmp_path: Path) -> None:
    write_arms(tmp_path, {"grown": (0.9, _MACS), "static_flops": (0.85, _MACS), "final_flops": (0.84, _MACS)})
    write_run(tmp_path / "between", accuracy=0.95, rng_seed=0, comparison=ComparisonConfig(arm="between_flops"))
    report = compared(tmp_path)
    assert best(report) == "static_flops"
    assert report.headline.startswith("Did growing pay? Yes: ")
    assert report.answers[0].choice.endswith("; without a size in between).")


def test_an_end_with_few_seeds_or_without_validation_leaves_it_open_whether_growing_paid(tmp_path: Path) -> None:
    write_arms(tmp_path / "few", {"grown": (0.9, _MACS), "static_flops": (0.85, _MACS)})
    write_run(tmp_path / "few" / "final", accuracy=0.95, comparison=ComparisonConfig(arm="final_flops"))
    assert compared(tmp_path / "few").headline == (
        "Did growing pay? Not shown: a yes takes at least 12 finished runs with a validation figure, and final size "
        "from scratch has 1."
    )
    for without, number in ((range(12), 0), (range(1), 11)):
        write_equal(tmp_path / str(number), 0.85, 0.84, 0.84)
        runs = [
            dataclasses.replace(run, result={**(run.result or {}), "val_accuracy": None})
            if run.settings["comparison.arm"] == "final_flops" and run.seed in without
            else run
            for run in from_folders([tmp_path / str(number)])
        ]
        report = compare(runs)
        assert best(report) == "static_flops"
        assert report.headline.endswith(f"and final size from scratch has {number}.")
        assert report.answers[0].choice.endswith("; without final size from scratch).")


def test_without_one_end_it_is_not_shown_that_growing_paid_but_a_size_in_between_may_not_exist(tmp_path: Path) -> None:
    write_equal(tmp_path / "host", 0.8, static=(0.8, _MACS))
    headline = compared(tmp_path / "host").headline
    assert headline == "Did growing pay? Not shown: final size from scratch has no finished run."
    write_arms(tmp_path / "none", {"grown": (0.9, _MACS), "static": (0.8, _MACS)})
    headline = compared(tmp_path / "none").headline
    assert headline.endswith("Not shown: host, trained longer and final size from scratch have no finished run.")
    write_arms(tmp_path / "ends", {"grown": (0.9, _MACS), "static_flops": (0.8, _MACS), "final_flops": (0.79, _MACS)})
    report = compared(tmp_path / "ends")
    assert report.headline.startswith("Did growing pay? Yes: ")
    assert report.answers[0].choice.endswith("; without a size in between).")


def test_growing_did_not_pay_if_the_host_does_as_well_for_less_though_a_longer_training_does_worse(
    tmp_path: Path,
) -> None:
    write_equal(tmp_path, 0.85, 0.85, 0.85, static=(0.9, 0.6 * _MACS))
    assert compared(tmp_path).headline.startswith("Did growing pay? No: against host, as many epochs, ")


def test_losing_to_the_final_network_at_its_full_budget_alone_is_not_a_no(tmp_path: Path) -> None:
    write_equal(tmp_path, 0.85, 0.85, 0.85, final=(0.92, 1.5 * _MACS))
    report = compared(tmp_path)
    assert verdicts(report)["final"] == "no"
    assert report.headline.startswith("Did growing pay? Yes: ")


def test_every_arm_has_words_of_its_own() -> None:
    assert len({arm.words for arm in ARMS.values()}) == len(ARMS)


def write_budgets(folder: Path, budgets: Mapping[int, Mapping[str, float]], *, num_seeds: int = 12) -> None:
    """Runs of a fair comparison at several budgets: accuracy by epochs and arm; as a sweep of both."""
    random = np.random.default_rng(1)
    for epochs, arms in budgets.items():
        for (arm, accuracy), seed in itertools.product(arms.items(), range(num_seeds)):
            is_resolved = bool(ARMS[arm].after) and arm != "static"
            write_run(
                folder / f"{arm}-{epochs}-{seed}",
                accuracy=accuracy + random.normal(0, 0.001),
                macs=epochs * _MACS,
                rng_seed=seed,
                comparison=ComparisonConfig(arm=arm, grown_run=f"grown-{epochs}-{seed}" if is_resolved else None),
                # What the budget bought, which tells nothing about which budget it is.
                optimization__max_epochs=7 if is_resolved else epochs,
            )


CROSSING = {
    10: {"grown": 0.82, "static_flops": 0.84, "between_flops": 0.80, "final_flops": 0.76},
    20: {"grown": 0.89, "static_flops": 0.85, "between_flops": 0.86, "final_flops": 0.84},
    40: {"grown": 0.91, "static_flops": 0.86, "between_flops": 0.88, "final_flops": 0.92},
}


def test_each_budget_is_a_comparison_of_its_own_and_holm_is_over_all(tmp_path: Path) -> None:
    write_budgets(tmp_path, CROSSING)
    report = compared(tmp_path)
    assert report.comparison.budgets == ["10 epochs", "20 epochs", "40 epochs"]
    assert report.headline == "Did growing pay? 10 epochs: no; 20 epochs: yes; 40 epochs: no."
    assert [answer.best for answer in report.answers] == [
        "static_flops, 10 epochs",
        "between_flops, 20 epochs",
        "final_flops, 40 epochs",
    ]
    assert len(report.claims) == 9
    assert all(claim.ours.split(", ")[1] == claim.other.split(", ")[1] for claim in report.claims)
    by_p = sorted(report.claims, key=lambda claim: float(claim.test.p))
    assert by_p[0].p == pytest.approx(9 * float(by_p[0].test.p))
    assert not report.comparison.warnings


def test_the_crossing_of_host_and_final_network_is_found_and_the_budgets_placed(tmp_path: Path) -> None:
    write_budgets(tmp_path, CROSSING)
    crossing = compared(tmp_path).crossing
    assert crossing is not None
    (where,) = crossing.flops
    # From 1 point ahead at 20 epochs to 6 points behind at 40, in the logarithm.
    assert where == pytest.approx(2 * _MACS * 20 * 2 ** (1 / 7), rel=0.02)
    assert crossing.sentence.endswith(
        "MFLOP. Budgets: below, where host, trained longer is better: 10 epochs, 20 epochs; beyond, where final size "
        "from scratch is better: 40 epochs."
    )


@pytest.mark.parametrize(
    ("final", "sentence"),
    [
        (0.7, "host, trained longer is ahead at every budget; they may cross beyond these."),
        (0.9, "final size from scratch is ahead at every budget; they may cross below these."),
    ],
)
def test_curves_that_do_not_cross_say_which_is_ahead(tmp_path: Path, final: float, sentence: str) -> None:
    write_budgets(tmp_path, {epochs: {"grown": 0.8, "static_flops": 0.8, "final_flops": final} for epochs in (10, 20)})
    crossing = compared(tmp_path).crossing
    assert crossing is not None
    assert crossing.sentence.endswith(sentence)


def test_one_budget_has_no_crossing_and_labels_without_it(tmp_path: Path) -> None:
    write_budgets(tmp_path, {10: CROSSING[10]})
    report = compared(tmp_path)
    assert report.crossing is None
    assert list(report.arms) == list(CROSSING[10])


def test_a_budget_without_its_grown_arm_makes_no_claims_and_is_named(tmp_path: Path) -> None:
    write_budgets(tmp_path, {10: CROSSING[10], 20: {"static": 0.8}})
    report = compared(tmp_path)
    assert {claim.ours for claim in report.claims} == {"grown, 10 epochs"}
    assert "No claims at 20 epochs: arm grown has no finished run there." in report.comparison.warnings


def test_a_run_whose_grown_run_is_elsewhere_is_left_out_if_there_are_several_budgets(tmp_path: Path) -> None:
    write_budgets(tmp_path, {10: CROSSING[10], 20: CROSSING[20]}, num_seeds=2)
    write_run(tmp_path / "astray", rng_seed=7, comparison=ComparisonConfig(arm="static_flops", grown_run="grown-30-7"))
    (left,) = compared(tmp_path).comparison.left_out
    assert (left.run.name, left.reason) == ("astray", "its grown run is not among these, so that its budget is unknown")


@pytest.mark.parametrize(("growth_steps", "is_known"), [({100}, True), ({100, 200}, False), (set(), False)])
def test_the_transfer_is_measured_where_the_network_grew_once(
    tmp_path: Path, growth_steps: set[int], is_known: bool
) -> None:
    write_budgets(tmp_path, {10: {"grown": 0.86, "static_flops": 0.8, "final_flops": 0.8, "final": 0.9}}, num_seeds=2)
    steps = {"grown": 300, "static_flops": 500, "final_flops": 200, "final": 300}
    runs = [
        dataclasses.replace(
            run,
            num_steps=steps[run.settings["comparison.arm"]],
            growth_steps=frozenset(growth_steps if run.settings["comparison.arm"] == "grown" else ()),
            result={**(run.result or {}), "num_macs_before": 40, "num_macs": 100},
        )
        for run in from_folders([tmp_path])
    ]
    (answer,) = compare(runs).answers
    if not is_known:
        assert (answer.transfer, answer.transfer_sentence) == (None, "")
        return
    # As good as the final network after some 200 * 1.5 ** 0.6 = 255 steps, of which 200 came after growth.
    assert answer.transfer == pytest.approx(0.55, abs=0.03)
    assert answer.transfer_sentence.endswith("more than the relative cost of the host's steps, 0.40.")


def test_a_baseline_can_be_named_among_several_budgets(tmp_path: Path) -> None:
    write_budgets(tmp_path, CROSSING, num_seeds=2)
    report = compared(tmp_path, baseline="grown, 20 epochs")
    assert (len(report.claims), report.answers, report.crossing) == (11, [], None)
    assert report.claims[0].title == "grown at 10 epochs against grown at 20 epochs"
    write(report, tmp_path / "page.html")
    assert "MFLOP spent" not in (tmp_path / "page.html").read_text()


def test_the_page_of_several_budgets_draws_curves_and_marks_their_crossing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_budgets(tmp_path, CROSSING, num_seeds=3)
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path)])
    assert ended.value.code == 0
    page = (tmp_path / "comparison.html").read_text()
    content: dict[str, Any] = json.loads((tmp_path / "comparison.json").read_text())
    printed = " ".join(capsys.readouterr().out.split())
    assert "MFLOP spent" in page
    for sentence in (content["crossing"]["sentence"], *(answer["choice"] for answer in content["answers"])):
        assert sentence in page
        assert sentence in printed
    assert "grown against host, trained longer at 10 epochs: not shown, 3 of at least 12 pairs" in printed


def test_equal_budgets_look_equal(tmp_path: Path) -> None:
    """Arms that differ by the size of a step would otherwise get an axis whose labels are all the same."""
    write_arms(tmp_path, {"grown": (0.9, 1_000_000_000), "static_flops": (0.8, 1_001_000_000)})
    drawing = embed(
        figure_against(
            compared(tmp_path).comparison.arms, ACCURACY, "total_macs", "FLOPs spent", link=lambda run: run.name
        )
    )
    labels = re.findall(r">([0-9.]+ [GM])<", drawing)
    assert len(labels) == len(set(labels)) > 2
