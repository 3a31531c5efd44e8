"""Compare arms: `comparison.html`, `comparison.json`, and the table in the terminal."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from markupsafe import Markup
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from esper.contracts.metrics import MetricInfo
from esper.costs import flops
from esper.errors import RunError
from esper.files import make_folder, write_atomically
from esper.report import comparison_plots as plots
from esper.report import packs
from esper.report.answers import STATIC_AT_EQUAL_COMPUTE, Answer, Crossing, answers, crossing, headline
from esper.report.arms import Arm, Comparison, group
from esper.report.claims import EQUAL, LESS, MIN_PAIRS, Claim, make_claims, p_text
from esper.report.figure import embed
from esper.report.labels import Label, breakable
from esper.report.run_page import template_environment
from esper.report.runs import ComparedRun
from esper.report.scale import Scale
from esper.report.statistics import MIN_RUNS, mean_interval
from esper.tracking import formatting
from esper.tracking.journal import strict

__all__ = ["Report", "compare", "printed", "write"]

_CURVES = ("grown", *STATIC_AT_EQUAL_COMPUTE)
"""Arms that are drawn over several budgets."""
_PARTS = ("forward", "backward", "scoring", "forking", "incubation", "judging", "discarded")
"""Parts of the compute of a run; "discarded", spent on culled modules, is also in forward and backward."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A comparison with its claims and metrics.

    Attributes:
        comparison: the arms.
        claims: a claim for every arm except the baseline.
        answers: whether growing paid, at each budget of a fair comparison.
        crossing: where the static curves cross, if there are several budgets.
        headline: the outcome in one sentence.
        target: value of the leading metric in validation that `reached` refers to; nan if no run has a validation.
        arms: metrics of each arm, by label.
        packs: a sentence about each process that several runs shared.
    """

    comparison: Comparison
    claims: Sequence[Claim]
    answers: Sequence[Answer]
    crossing: Crossing | None
    headline: str
    target: float
    arms: Mapping[str, Mapping[str, Any]]
    packs: Sequence[str]

    @property
    def scale(self) -> Scale:
        """How values of the leading metric are written."""
        return Scale(self.comparison.headline)


def compare(runs: Sequence[ComparedRun], *, baseline: str | None = None, target: float | None = None) -> Report:
    """Group runs into arms, test the claims and average the metrics.

    Args:
        runs: all of them, finished or not.
        baseline: see `group`.
        target: value of the leading metric in validation (accuracies in [0, 1]), for the time to reach it; None is
            the worst arm's final one.

    Raises:
        RunError: the runs cannot be compared, see `group`.
    """
    comparison = group(runs, baseline=baseline)
    info = comparison.headline
    if target is not None and info.unit == "%" and not 0 < target <= 1:
        raise RunError(f"--target {target:g}: must be an {info.label} above 0 and at most 1, e.g. 0.9 for 90 %")
    claims = make_claims(comparison)
    if target is None:
        finals = [_mean([run.curve[-1].figure for run in _runs(arm) if run.curve]) for arm in comparison.arms]
        worst = min if info.higher_is_better else max
        target = worst((final for final in finals if not math.isnan(final)), default=float("nan"))
    arms = {arm.label: _arm_metrics(arm, info, target=target) for arm in comparison.arms}
    found = answers(comparison, claims)
    sentence = headline(comparison, claims, found) if claims or len(arms) < 2 else _best(arms, info)
    return Report(
        comparison=comparison,
        claims=claims,
        answers=found,
        crossing=crossing(comparison),
        headline=sentence,
        target=target,
        arms=arms,
        packs=packs.sentences(run.shared for run in runs),
    )


def write(report: Report, target: Path) -> None:
    """Write the page, and its content as `.json` beside it."""
    renderer = template_environment()
    renderer.filters |= {
        "breakable": breakable,
        "short_clock": _short_clock,
        "points": report.scale.signed,
        "points_to": report.scale.signed_range,
        "p": p_text,
        "more": _more,
        "ratio": _ratio,
    }
    arms, info = report.comparison.arms, report.comparison.headline
    link = functools.partial(_link, page=target)
    signs = plots.marks(arms)
    page = renderer.get_template("comparison.html.j2").render(
        report=report,
        comparison=report.comparison,
        columns=_columns(report),
        signs=signs,
        key=dict.fromkeys((sign, arm.words, arm.name) for sign, arm in zip(signs, arms, strict=True)),
        plots=_plots(report, link),
        link=link,
        explanations=list(_explanations(report)),
        withheld=_withheld(report),
        curve_names=_CURVES,
        curves=_curves(report),
        forests=_forests(report),
        parts=_PARTS,
        info=info,
        better="higher" if info.higher_is_better else "lower",
        worse="lower" if info.higher_is_better else "higher",
        rules={
            "equal": f"{100 * EQUAL:g} %",
            "less": f"{100 * LESS:g} %",
            "margin": report.scale.margin_text,
            "pairs": MIN_PAIRS,
        },
    )
    make_folder(target.parent)
    write_atomically(target, page)
    write_atomically(target.with_suffix(".json"), json.dumps(strict(_content(report)), indent=1, allow_nan=False))


def printed(report: Report) -> Iterator[RenderableType]:
    """The output in the terminal: a row for each arm, verdicts and warnings."""
    yield Text(report.headline, style="bold")
    yield from map(Text, _explanations(report))
    yield Text()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("arm")
    several = len(report.comparison.budgets) > 1
    columns = [c for c in _columns(report) if c.in_terminal and not (several and c.is_dropped_for_budget)]
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for arm in report.arms.values():
        table.add_row(Label(arm["words"]), *(column.text(arm[column.metric]) for column in columns))
    yield table
    yield Text()
    if withheld := _withheld(report):
        yield Text(withheld)
    style = {"yes": "green", "no": "yellow"}
    for claim in report.claims:
        if claim.sentence != report.headline:  # as that of a lone claim is
            yield Text(claim.sentence, style=style.get(claim.verdict, ""))
    for claim in report.claims:
        if claim.warning:
            yield Text(claim.warning, style="yellow")
        if claim.unpaired:
            seeds = ", ".join(map(str, claim.unpaired))
            yield Text(f"unpaired, {claim.title}: seeds {seeds}", style="yellow")
    yield from map(Text, report.packs)
    for left in report.comparison.left_out:
        yield Text(f"left out: {left.run.name}: {left.reason}", style="yellow")
    for warning in report.comparison.warnings:
        yield Text(warning, style="yellow")


def _explanations(report: Report) -> Iterator[str]:
    """What the headline leaves out: answers by budget, how the best static arm was chosen, crossing, transfer."""
    if len(report.answers) > 1:
        yield from (answer.sentence for answer in report.answers)
    yield from (answer.choice for answer in report.answers)
    if report.crossing:
        yield report.crossing.sentence
    yield from (answer.transfer_sentence for answer in report.answers if answer.transfer_sentence)


def _withheld(report: Report) -> str:
    """Why figures of an arm have no interval, in one sentence; empty if all have one."""
    few = any(arm["n"] < MIN_RUNS for arm in report.arms.values())
    return f"Fewer than {MIN_RUNS} runs of an arm give no interval and no p value." if few else ""


def _best(arms: Mapping[str, Mapping[str, Any]], info: MetricInfo) -> str:
    """The arm to choose if there is no baseline; by validation, as the test set must not be used for it."""
    metric = f"val_{info.name}"
    known = {label: arm[metric] for label, arm in arms.items() if not math.isnan(arm[metric][0])}
    if not known:
        return "No claims about these runs."
    label = max(known, key=lambda label: info.sign * known[label][0])
    word = "Highest" if info.higher_is_better else "Lowest"
    return f"{word} validation {info.label}: {arms[label]['title']}, {Scale(info).interval(known[label])}."


def _runs(arm: Arm) -> list[ComparedRun]:
    return list(arm.runs.values())


def _arm_metrics(arm: Arm, info: MetricInfo, *, target: float) -> dict[str, Any]:
    """Means over the runs of an arm; the leading metric and the loss as (mean, half the 95 % interval)."""
    runs = _runs(arm)
    names = ("num_parameters", "num_macs", "total_macs", "seconds")
    peaks = [float(run.result["peak_parameters"]) for run in runs if run.result and "peak_parameters" in run.result]
    return {
        "words": arm.words,
        "title": arm.title,
        "name": arm.name,
        "budget": arm.budget,
        "n": len(runs),
        "seeds": sorted(arm.runs),
        f"val_{info.name}": mean_interval(np.array([run.val_figure for run in runs])),
        f"test_{info.name}": mean_interval(np.array([run.figure for run in runs])),
        "test_loss": mean_interval(np.array([run.metric("test_loss") for run in runs])),
        "flops": _mean([run.flops for run in runs]),
        "growth_share": _mean([run.metric("growth_macs") / run.metric("total_macs") for run in runs]),
        "peak_parameters": _mean(peaks) if peaks else None,
        **{name: _mean([run.metric(name) for run in runs]) for name in names},
        "charged_flops": {part: _charged(runs, part) for part in _PARTS},
        "reached": _reached(runs, info, target=target),
    }


def _charged(runs: Sequence[ComparedRun], part: str) -> float | None:
    """Mean FLOPs of a part of the compute; None for the first journals, which lack it."""
    spent = [run.result[f"{part}_macs"] for run in runs if run.result and f"{part}_macs" in run.result]
    return flops(_mean(spent)) if len(spent) == len(runs) else None


def _reached(runs: Sequence[ComparedRun], info: MetricInfo, *, target: float) -> dict[str, Any]:
    """Number of runs that reached the target, and the median cost until then; infinite for runs that never did."""
    first = [
        next((point for point in run.curve if info.sign * point.figure >= info.sign * target), None) for run in runs
    ]
    spent = float(np.median([flops(point.macs) if point else math.inf for point in first]))
    seconds = float(np.median([point.seconds if point else math.inf for point in first]))
    return {
        "num_runs": sum(point is not None for point in first),
        "flops": spent if math.isfinite(spent) else None,
        "seconds": seconds if math.isfinite(seconds) else None,
    }


def _link(run: ComparedRun, page: Path) -> str:
    """Address of a run's report, relative to the page; empty if it has none."""
    if run.folder is None or not (run.folder / "report.html").is_file():
        return ""
    return quote(os.path.relpath(run.folder / "report.html", page.absolute().parent.resolve()))


def _plots(report: Report, link: Callable[[ComparedRun], str]) -> list[tuple[str, Markup]]:
    arms = report.comparison.arms
    if not arms:
        return []
    info = report.comparison.headline
    against = functools.partial(plots.figure_against, arms, info, link=link)
    drawn = [
        (f"{info.title} against compute", against("total_macs", "FLOPs spent")),
        (f"{info.title} against size", against("num_parameters", "parameters")),
        (f"{info.title} against wall time", against("seconds", "seconds")),
    ]
    if not math.isnan(report.target):
        during = plots.figure_over_flops(arms, info, target=report.target)
        drawn.append((f"Validation {info.label} during training", during))
    return [(title, embed(figure)) for title, figure in drawn]


def _forests(report: Report) -> list[tuple[str, Markup]]:
    """Paired differences, a plot for each budget."""
    budgets = dict.fromkeys(claim.budget for claim in report.claims)
    of_budget = {budget: [claim for claim in report.claims if claim.budget == budget] for budget in budgets}
    return [
        (f"Paired differences{f' at {budget}' if budget else ''}", Markup(plots.differences(claims)))
        for budget, claims in of_budget.items()
    ]


def _curves(report: Report) -> Markup | None:
    """Grown and the static arms at equal compute, over the budgets of a fair comparison; None if it has only one."""
    if len(report.comparison.budgets) < 2 or not report.answers:
        return None
    found = report.crossing.flops if report.crossing else []
    arms, info = report.comparison.arms, report.comparison.headline
    return embed(plots.budget_curves(arms, info, names=_CURVES, crossings=found))


def _content(report: Report) -> dict[str, Any]:
    """The report as JSON data."""
    comparison = report.comparison
    claim_fields = [field.name for field in dataclasses.fields(Claim) if field.name != "scale"]
    runs = [(arm.label, seed, run) for arm in comparison.arms for seed, run in sorted(arm.runs.items())]
    return {
        "headline": report.headline,
        "answers": [dataclasses.asdict(answer) | {"sentence": answer.sentence} for answer in report.answers],
        "crossing": dataclasses.asdict(report.crossing) if report.crossing else None,
        "baseline": comparison.baseline,
        "target": report.target,
        "arms": report.arms,
        "claims": [
            {
                **{name: getattr(claim, name) for name in claim_fields},
                "differences": claim.differences.tolist(),
                "test": {name: float(value) for name, value in claim.test._asdict().items()},
                "spent": claim.spent._asdict(),
                "sentence": claim.sentence,
                "warning": claim.warning,
            }
            for claim in report.claims
        ],
        "runs": [{"arm": arm, "seed": seed, "name": run.name, "result": run.result} for arm, seed, run in runs],
        "left_out": [{"name": left.run.name, "arm": left.label, "why": left.reason} for left in comparison.left_out],
        "warnings": comparison.warnings,
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _short_clock(seconds: float | None) -> str:
    """Like `clock`, but `1.2 s` below ten seconds."""
    return f"{seconds:.1f} s" if seconds is not None and seconds < 10 else formatting.clock(seconds)


def _more(cost: float) -> str:
    return "–" if math.isnan(cost) else f"{100 * cost:+.1f} %"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


class _Column(NamedTuple):
    heading: str
    metric: str
    text: Callable[[Any], str]
    in_terminal: bool = True
    is_dropped_for_budget: bool = False
    """Whether the terminal has no room for it beside the budget."""


def _columns(report: Report) -> tuple[_Column, ...]:
    """Columns of the table of arms, on the page and in the terminal; the metrics are those of `_arm_metrics`."""
    info, text = report.comparison.headline, report.scale.interval
    budget = [_Column("budget", "budget", str)] if len(report.comparison.budgets) > 1 else []
    figures = [
        _Column(f"test {info.label}", f"test_{info.name}", text),
        _Column(f"val {info.label}", f"val_{info.name}", text, in_terminal=False),
    ]
    return (*budget, _Column("n", "n", str), *figures, *_COLUMNS)


_COLUMNS = (
    _Column("FLOPs", "flops", formatting.number),
    _Column("growth", "growth_share", formatting.percent, is_dropped_for_budget=True),
    _Column("params", "num_parameters", formatting.number),
    _Column("peak params", "peak_parameters", formatting.number, in_terminal=False),
    _Column("MACs", "num_macs", formatting.number),
    _Column("time", "seconds", _short_clock, is_dropped_for_budget=True),
)
"""The columns behind the figures."""
