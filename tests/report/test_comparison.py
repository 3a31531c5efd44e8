"""Comparisons of runs that are written through the real journal with simulated figures, and of real tiny runs."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shlex
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esper.cli import main
from esper.configs import ComparisonConfig, OptimizationConfig
from esper.contracts.events import RunEnded, RunStarted, Validated
from esper.contracts.metrics import ACCURACY, MetricInfo
from esper.errors import RunError
from esper.report import comparison_plots, run_page
from esper.report.comparison import Report, compare
from esper.report.comparison_plots import differences, marks
from esper.report.runs import from_folders, from_mlflow
from esper.report.scale import Scale
from esper.tolaria import TolariaTrainer
from esper.tracking import Journal, sync
from tests.conftest import result_of, tiny_config, use
from tests.report import drawn

_MACS = 1_000_000
_ERROR = MetricInfo(name="mse", label="mean squared error", higher_is_better=False)


def write_run(
    folder: Path,
    *,
    accuracy: float = 0.9,
    macs: int = _MACS,
    seconds: float = 4.0,
    status: str = "finished",
    val_accuracy: float | None = None,
    loss: float = 0.6,
    info: MetricInfo = ACCURACY,
    **changes: Any,
) -> None:
    """A run as the journal would have it; `macs` is all that it spent, a tenth of it on scoring.

    `accuracy` is that of the metric `info`.
    """
    config = tiny_config(**changes)
    journal = Journal(folder / "journal.jsonl")
    journal.write(
        RunStarted(
            step=0, run_name=folder.name, experiment_name="tiny", total_steps=18, total_epochs=3, steps_per_epoch=6,
            num_parameters=100, num_macs=10, num_sites=2, device="cpu", config=dataclasses.asdict(config),
            environment={"cpu": "a"}, resumed_from=None, metrics=(info,),
        )
    )  # fmt: skip
    for epoch in (1, 2, 3):
        journal.write(
            Validated(step=6 * epoch, epoch=epoch, val_loss=1.0, val_metrics={info.name: accuracy * epoch / 3})
        )
    parts = {"forward": 3, "backward": 6, "scoring": 1, "forking": 0, "incubation": 0, "judging": 0, "discarded": 0}
    result = {f"{part}_macs": macs * share // 10 for part, share in parts.items()}
    result |= {
        "train_macs": macs * 9 // 10,
        "growth_macs": macs // 10,
        "total_macs": macs,
        "test_loss": loss,
        f"test_{info.name}": accuracy,
    }
    result |= {f"val_{info.name}": accuracy if val_accuracy is None else val_accuracy, "seconds": seconds}
    result |= {"metrics": [dataclasses.asdict(info)]}
    is_finished = status == "finished"
    reason = "" if is_finished else "the loss is <nan>"
    journal.write(RunEnded(step=18, status=status, reason=reason, result=result_of(**result) if is_finished else None))
    journal.close()


def write_arms(
    folder: Path, arms: Mapping[str, tuple[float, float]], *, num_seeds: int = 12, size: float = 1.0, **run: Any
) -> None:
    """Runs of a fair comparison: mean accuracy (times `size`) and MACs by arm, with noise that belongs to the run."""
    random = np.random.default_rng(0)
    for arm, (accuracy, macs) in arms.items():
        for seed, noise in enumerate(random.normal(0, 0.002, num_seeds)):
            write_run(
                folder / f"{arm}-{seed}",
                accuracy=size * (accuracy + noise),
                macs=round(macs),
                rng_seed=seed,
                comparison=ComparisonConfig(arm=arm),
                **run,
            )


def compared(folder: Path, **options: Any) -> Report:
    return compare(from_folders([folder]), **options)


def verdicts(report: Report) -> dict[str, str]:
    return {claim.other: claim.verdict for claim in report.claims}


def run_cli(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["report", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("other", "more", "verdict", "warns"),
    [("final_flops", 1.01, "not shown", False), ("final_flops", 1.2, "not shown", True), ("final", 1.2, "yes", False)],
)
def test_being_not_worse_is_a_yes_only_against_an_arm_that_was_free_to_spend_more(
    tmp_path: Path, other: str, more: float, verdict: str, warns: bool
) -> None:
    write_arms(tmp_path, {"grown": (0.9007, _MACS), other: (0.9, more * _MACS)})
    (claim,) = compared(tmp_path).claims
    assert claim.verdict == verdict
    assert ("budgets should be equal, but the first took 83.3 % of the compute" in claim.warning) == warns


def test_the_arm_of_equal_time_is_judged_by_wall_time(tmp_path: Path) -> None:
    write_arms(tmp_path, {"grown": (0.91, 2 * _MACS)}, seconds=4.04)
    write_arms(tmp_path, {"final_seconds": (0.9, _MACS), "static": (0.9, _MACS)})
    time, compute = sorted(compared(tmp_path).claims, key=lambda claim: claim.other)
    assert (time.verdict, time.warning) == ("yes", "")
    assert "at 101.0 % of the wall time" in time.reason
    assert compute.verdict == "not shown"


def test_a_higher_accuracy_at_more_compute_is_not_a_yes_and_says_the_price(tmp_path: Path) -> None:
    write_arms(tmp_path, {"grown": (0.9, 2 * _MACS), "static": (0.8, _MACS)})
    claim = compared(tmp_path).claims[0]
    assert claim.verdict == "not shown"
    assert re.match(r"\+10\.\d\d points of test accuracy, but 100\.0 % more compute; compare with", claim.reason)


def test_no_gain_at_more_compute_is_a_no(tmp_path: Path) -> None:
    write_arms(tmp_path, {"grown": (0.9, 2 * _MACS), "static": (0.9, _MACS)})
    claim = compared(tmp_path).claims[0]
    assert claim.verdict == "no"
    assert "100.0 % more compute and no gain was shown" in claim.reason


@pytest.mark.parametrize(("accuracy", "verdict"), [(0.903, "yes"), (0.898, "not shown"), (0.89, "no")])
def test_less_compute_is_a_yes_only_if_the_accuracy_is_not_worse(tmp_path: Path, accuracy: float, verdict: str) -> None:
    write_arms(tmp_path, {"grown": (accuracy, _MACS // 2), "static": (0.9, _MACS)})
    assert verdicts(compared(tmp_path)) == {"static": verdict}


@pytest.mark.parametrize("size", [1.0, 1e-13, 1e9])
@pytest.mark.parametrize(
    ("error", "verdict", "words"),
    [(0.4, "yes", "better by "), (0.5009, "not shown", "worse by "), (0.6, "no", "worse by ")],
)
def test_of_an_error_less_is_better_however_large_its_numbers_are(
    tmp_path: Path, size: float, error: float, verdict: str, words: str
) -> None:
    write_arms(tmp_path, {"grown": (error, _MACS // 2), "static": (0.5, _MACS)}, info=_ERROR, size=size)
    report = compared(tmp_path)
    (claim,) = report.claims
    assert claim.verdict == verdict
    assert (float(claim.test.mean) > 0) == (words == "better by ")
    assert claim.bootstrap[0] < float(claim.test.mean) < claim.bootstrap[1]
    if verdict != "yes":
        assert f"test mean squared error {words}" in claim.reason
    assert not re.search(r"\b0\.0+\b", report.scale.interval(report.arms["static"]["test_mse"]))


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [(1.5, 0.00093, "1.50000 ± 0.00093"), (0.0123, 0.05, "0.0123 ± 0.0500"), (2e9, 3e5, "2e+09 ± 3e+05")],
)
def test_a_mean_has_the_decimals_of_its_interval(mean: float, half: float, text: str) -> None:
    assert Scale(_ERROR).interval((mean, half)) == text


def test_names_of_layers_are_shown_as_they_are_and_a_long_one_leaves_room_for_the_verdict(tmp_path: Path) -> None:
    for layers in (["réseau"], [f"{'long_' * 30}end"]):
        write_run(tmp_path / str(len(layers[0])), model__target_layers=layers)
    (claim,) = claims = compared(tmp_path, baseline='target_layers=["réseau"]').claims
    (label,) = re.findall(r">([^<]*: not shown)<", differences(claims))
    assert html.unescape(label) == f"{claim.ours[:28]}…{claim.ours[-27:]}: not shown"


def test_each_of_forty_arms_has_a_mark_of_its_own(tmp_path: Path) -> None:
    for number in range(40):
        write_run(tmp_path / str(number), optimization=OptimizationConfig(max_epochs=3, learning_rate=0.001 + number))
    assert len(set(marks(compared(tmp_path).comparison.arms))) == 40


def test_the_page_of_an_error_says_lowest_and_lower(tmp_path: Path) -> None:
    arms = {"grown": (0.4, _MACS), "static_flops": (0.5, _MACS), "final_flops": (0.6, _MACS)}
    write_arms(tmp_path, arms, info=_ERROR)
    assert run_cli(tmp_path) == 0
    page = html.unescape((tmp_path / "comparison.html").read_text())
    for words in (
        "Did growing pay? Yes: against the best static arm at equal compute (host, trained longer), test mean squared",
        "the lowest mean validation mean squared error over 12 seeds",
        "Mean squared error against compute",
        "the mean squared error is lower (paired t test",
        "Differences in test mean squared error, as improvements",
    ):
        assert words in page
    assert "accuracy" not in page.lower()


@pytest.mark.parametrize(("num_seeds", "verdict"), [(11, "not shown"), (12, "yes")])
def test_fewer_than_twelve_pairs_show_nothing(tmp_path: Path, num_seeds: int, verdict: str) -> None:
    write_arms(tmp_path, {"grown": (0.9, _MACS), "static_flops": (0.7, _MACS)}, num_seeds=num_seeds)
    assert verdicts(compared(tmp_path)) == {"static_flops": verdict}


def test_early_stopping_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", comparison__arm="grown")
    write_run(tmp_path / "b", optimization=OptimizationConfig(max_epochs=3, patience=4), comparison__arm="static")
    assert run_cli(tmp_path) == 2
    error = capsys.readouterr().err
    assert "optimization.patience=4" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "comparison.html").exists()


def test_a_test_loss_that_is_not_finite_leaves_the_rest_of_the_comparison(tmp_path: Path) -> None:
    write_run(tmp_path / "a", comparison__arm="grown", loss=float("inf"))
    write_run(tmp_path / "b", comparison__arm="static_flops")
    assert run_cli(tmp_path) == 0
    arms = json.loads((tmp_path / "comparison.json").read_text())["arms"]
    assert [arms[arm]["test_loss"][0] for arm in ("grown", "static_flops")] == [None, 0.6]
    assert [arms[arm]["test_accuracy"][0] for arm in ("grown", "static_flops")] == [0.9, 0.9]


@pytest.mark.parametrize("changes", [{"comparison__arm": "grown"}, {"rng_seed": 3}])
@pytest.mark.parametrize("others", [(), ("c",), ("c", "d", "d.old1")])
def test_two_runs_of_one_arm_and_seed_are_refused_with_the_command_that_compares_one_of_them(
    others: tuple[str, ...], changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "outputs" / "two of one"
    for name in ("a", "b"):
        write_run(folder / name, **changes)
    for seed, name in enumerate(others, start=4):
        write_run(folder / name, **changes | {"rng_seed": seed, "status": "failed" if name == "d" else "finished"})
    assert run_cli(Path("outputs")) == 2
    message = capsys.readouterr().err
    assert re.search(r"a and b are both .*, seed \d; to compare without the second: esper report ", message)
    command = shlex.split(message.partition("second: ")[2])
    assert [Path(path).name for path in command[2:]] == ["a", *(name for name in others if name != "d.old1")]
    assert all(path.startswith("outputs/") for path in command[2:])
    assert run_cli(*map(Path, command[2:])) == 0


def test_what_a_fresh_run_set_aside_is_listed_and_not_taken_for_a_second_run_of_its_seed(tmp_path: Path) -> None:
    for name in ("a", "a.old1"):
        write_run(tmp_path / name, comparison__arm="grown")
    report = compared(tmp_path)
    assert report.arms["grown"]["n"] == 1
    assert [(left.run.name, left.reason) for left in report.comparison.left_out] == [("a.old1", "replaced")]


def test_without_arms_the_runs_are_told_apart_by_their_settings_and_the_static_one_is_the_baseline(
    tmp_path: Path,
) -> None:
    for seed in range(2):
        write_run(tmp_path / f"grows-{seed}", rng_seed=seed)
        write_run(tmp_path / f"static-{seed}", rng_seed=seed, morphogenetic__enable_tamiyo=False)
    report = compared(tmp_path)
    (claim,) = report.claims
    assert claim.ours == "morphogenetic.enable_tamiyo=true"
    assert claim.other == "morphogenetic.enable_tamiyo=false"
    assert not report.comparison.warnings


def test_a_baseline_can_be_named_and_one_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write_arms(tmp_path, {"grown": (0.9, _MACS), "static": (0.8, _MACS), "random": (0.9, _MACS)}, num_seeds=2)
    claims = compared(tmp_path, baseline="random").claims
    assert [(claim.ours, claim.other) for claim in claims] == [("grown", "random"), ("static", "random")]
    with pytest.raises(RunError, match="--baseline 'none': the arms with finished runs are grown, static, random"):
        compared(tmp_path, baseline="none")


def test_another_recipe_is_warned_about_but_the_epochs_of_a_budget_are_not(tmp_path: Path) -> None:
    write_run(tmp_path / "grown", comparison__arm="grown")
    matched = {"comparison__arm": "static_flops", "comparison__grown_run": "grown", "optimization__max_epochs": 7}
    write_run(tmp_path / "static_flops", **matched)
    assert compared(tmp_path).comparison.warnings == []
    write_run(tmp_path / "random", comparison__arm="random", dataset__batch_size=16)
    (warning,) = compared(tmp_path).comparison.warnings
    assert "dataset.batch_size is 16 (random); 32 (grown, static_flops)" in warning


def test_what_tells_the_arms_apart_is_compared_and_not_warned_about(tmp_path: Path) -> None:
    for size in (16, 32):
        write_run(tmp_path / str(size), dataset__batch_size=size)
    comparison = compared(tmp_path, baseline="dataset.batch_size=16").comparison
    assert [arm.label for arm in comparison.arms] == ["dataset.batch_size=16", "dataset.batch_size=32"]
    assert comparison.warnings == []


@pytest.mark.parametrize(
    "changes",
    [
        {"bus": "redis"},
        {"device": "cuda"},
        {"redis__timeout_s": 9.0},
        {"storage__compile_cache_dir": "/cache"},
        {"database__url": "postgresql:///esper"},
        {"dataset__data_dir": "/elsewhere"},
    ],
)
def test_settings_that_do_not_change_what_is_trained_do_not_split_an_arm(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    write_run(tmp_path / "a", rng_seed=0)
    write_run(tmp_path / "b", rng_seed=1, **changes)
    (arm,) = compared(tmp_path).comparison.arms
    assert sorted(arm.runs) == [0, 1]


def test_a_run_that_never_reaches_the_target_counts_as_not_reached(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.9, 0.6, 0.6)):
        write_run(tmp_path / str(seed), accuracy=accuracy, rng_seed=seed, comparison__arm="grown")
    reached = compared(tmp_path, target=0.6).arms["grown"]["reached"]
    assert reached["num_runs"] == 3
    assert reached["flops"] == pytest.approx(2 * _MACS)  # the median run reaches it last
    assert compared(tmp_path, target=0.8).arms["grown"]["reached"] == {"num_runs": 1, "flops": None, "seconds": None}


class Tags(HTMLParser):
    """Checks that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta", "br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_command_writes_a_page_that_stands_alone_and_strict_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_arms(tmp_path / "runs", {"grown": (0.9, _MACS), "static_flops": (0.91, _MACS)}, num_seeds=12)
    write_run(tmp_path / "runs" / "failed", status="failed", rng_seed=12, comparison__arm="static_flops")
    write_run(tmp_path / "runs" / "alone", rng_seed=12, comparison__arm="grown")
    run_page.write(tmp_path / "runs" / "grown-0")
    assert run_cli(tmp_path / "runs") == 0
    text = (tmp_path / "runs" / "comparison.html").read_text()
    script = (Path(run_page.__file__).parent / "plot.js").read_text()
    assert text.count("<script") == text.count(script) == 1
    outside = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!#)([^"')\s>]+)""", text.replace(script, ""))
    assert [address for address in outside if not address.startswith("data:")] == ["grown-0/report.html"]
    parser = Tags()
    parser.feed(text)
    assert parser.open == []
    assert "failed: the loss is &lt;nan&gt;" in text
    assert "unpaired seeds: 12" in text
    content = json.loads((tmp_path / "runs" / "comparison.json").read_text(), parse_constant=pytest.fail)
    assert content["headline"].startswith("Did growing pay? No: against the best static arm at equal compute (host, tr")
    assert content["answers"][0]["choice"] in html.unescape(text)
    assert content["headline"] in html.unescape(text)
    assert content["left_out"][0]["why"] == "failed: the loss is <nan>"
    printed = " ".join(capsys.readouterr().out.split())
    assert content["headline"] in printed
    assert content["answers"][0]["choice"] in printed
    assert "unpaired, grown against host, trained longer: seeds 12" in printed
    assert "left out: failed: failed: the loss is <nan>" in printed


@pytest.mark.parametrize("num_seeds", [2, 3])
def test_two_runs_of_an_arm_get_neither_an_interval_nor_a_p_value_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_seeds: int
) -> None:
    write_arms(tmp_path, {"grown": (0.9, _MACS), "static_flops": (0.8, _MACS)}, num_seeds=num_seeds)
    assert run_cli(tmp_path) == 0
    printed, page = capsys.readouterr().out, (tmp_path / "comparison.html").read_text()
    content = json.loads((tmp_path / "comparison.json").read_text())
    (claim,) = content["claims"]
    unknown = [content["arms"]["grown"]["test_accuracy"][1], claim["p"], claim["wilcoxon_p"], *claim["bootstrap"]]
    unknown += [claim["test"][name] for name in ("low", "high", "p", "lower_bound", "p_not_worse")]
    withheld = "Fewer than 3 runs of an arm give no interval and no p value."
    is_known = num_seeds == 3
    assert [value is not None for value in unknown] == [is_known] * 10
    assert ("± " in printed) == is_known
    assert (withheld in printed, withheld in page) == (not is_known, not is_known)
    assert ('data-label="bootstrap" class="n range">–<' in page) == (not is_known)
    assert claim["test"]["mean"] == pytest.approx(0.1, abs=0.01)


def test_an_interval_of_differences_shows_no_more_than_a_percentage_can_differ(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.1, 0.9, 0.95)):
        write_run(tmp_path / f"grown-{seed}", accuracy=accuracy, rng_seed=seed, comparison__arm="grown")
        write_run(tmp_path / f"static-{seed}", accuracy=0.3, rng_seed=seed, comparison__arm="static")
    (claim,) = claims = compared(tmp_path).claims
    assert float(claim.test.high) > 1.0
    (low, high), _ = drawn.limits(comparison_plots, lambda: differences(claims))
    assert -100 <= low < high == 100


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("journal.jsonl", "{\n", "journal.jsonl, line 1 is damaged"),
        ("config.yaml", "model: [", "config.yaml is not the configuration of a run"),
        ("config.yaml", None, "config.yaml is not the configuration of a run"),  # a folder
    ],
)
def test_a_damaged_run_is_left_out_with_its_remedy_and_the_others_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None, told: str
) -> None:
    for seed in range(3):
        write_run(tmp_path / f"run-{seed}", rng_seed=seed)
    file = tmp_path / "run-2" / name
    if content is None:
        file.mkdir()
    else:
        file.write_text(content)
    assert run_cli(tmp_path) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "all runs 2 " in out
    assert "left out: run-2: damaged: " in out
    (left,) = json.loads((tmp_path / "comparison.json").read_text())["left_out"]
    assert re.fullmatch(rf"damaged: \S+/run-2/{told}.*; the run's own command (rebuilds|sets) .*", left["why"])
    assert run_cli(file.parent) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(rf"error: \S+/run-2/{told}.*; the run's own command (rebuilds|sets) .*\n", err)
    assert run_cli(file.parent, "--out", tmp_path / "page.html") == 2
    assert capsys.readouterr().err == err


def test_several_paths_are_compared_and_their_page_goes_to_the_file_that_is_named(tmp_path: Path) -> None:
    for name, grows in (("a", True), ("b", False)):
        write_run(tmp_path / name, morphogenetic__enable_tamiyo=grows)
    assert run_cli(tmp_path / "a", tmp_path / "b", "--out", tmp_path / "new" / "page.html") == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["page.html", "page.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["empty"], "holds no run folder"),
        ([], "give either folders of runs or --mlflow"),
        (["empty", "--out", "page.json"], "must be an .html file"),
        (["empty", "--out", "taken/page.html"], "page.json: is a folder; name a file"),
        (["empty", "--out", "taken/file/page.html"], "taken/file is no folder; choose another place"),
        (["empty", "--out", f"{'long' * 100}/page.html"], "holds no run folder"),
        (["--mlflow", "x", "--uri", "sqlite:///absent.db"], "no such database"),
        (["empty", "--uri", "sqlite:///absent.db"], "only used with --mlflow"),
    ],
)
def test_what_cannot_be_reported_is_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("taken", "page.json").mkdir(parents=True)
    Path("taken", "file").touch()
    assert run_cli(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_run_that_has_not_begun_is_listed(tmp_path: Path) -> None:
    write_run(tmp_path / "a", comparison__arm="grown")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "journal.jsonl").touch()
    (left,) = compared(tmp_path).comparison.left_out
    assert (left.run.name, left.reason) == ("b", "not started")


def test_real_runs_are_compared_and_mlflow_tells_the_same_of_them(tmp_path: Path) -> None:
    folder, uri = tmp_path / "tiny", f"sqlite:///{tmp_path / 'mlflow.db'}"
    for name, grows in (("grows", True), ("static", False)):
        config = tiny_config(morphogenetic__enable_tamiyo=grows)
        use(config, folder / name, TolariaTrainer.train)
    assert run_cli(folder) == 0
    runs = from_folders([folder])
    for run in runs:
        assert run.curve[-1].macs <= run.metric("total_macs")
        assert run.curve[-1].macs == pytest.approx(run.metric("total_macs"), rel=0.25)
        assert [point.macs for point in run.curve] == sorted(point.macs for point in run.curve)
    sync.main([folder / "grows", folder / "static"], uri)
    reported = from_mlflow("tiny", uri=uri)
    assert [(run.name, run.figure, run.flops) for run in reported] == [
        (run.name, run.figure, run.flops) for run in runs
    ]
    assert [len(run.curve) for run in reported] == [len(run.curve) for run in runs]
    assert [(run.num_steps, set(run.growth_steps)) for run in runs] == [(18, {6, 12}), (18, set())]
    assert [(run.num_steps, run.growth_steps) for run in reported] == [
        (run.num_steps, run.growth_steps) for run in runs
    ]
    assert compare(reported).claims[0].sentence == compare(runs).claims[0].sentence


def test_a_target_in_percent_is_refused_as_accuracies_are_fractions(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    with pytest.raises(RunError, match=r"0\.9 for 90 %"):
        compare(from_folders([tmp_path]), target=90.0)
