"""`comparison.html` and `comparison.json`: runs of several arms against each other, and the table in the terminal."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from esper.costs import flops
from esper.report import comparison_plots as plots
from esper.report.arms import Arm, Comparison, group
from esper.report.claims import EQUAL, LESS, MARGIN, MIN_PAIRS, Claim, claims, headline, p_text
from esper.report.run_page import environment
from esper.report.runs import Run
from esper.report.statistics import mean_interval
from esper.tracking import formatting, write_atomically

__all__ = ["Report", "compare", "printed", "write"]

_PARTS = ("forward", "backward", "scoring", "forking", "incubation", "judging", "discarded")
"""What a result charges; what culled modules took is part of forward and backward."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A comparison with its claims.

    Attributes:
        comparison: the arms.
        claims: one for every arm but the one they are about, or the baseline.
        headline: all of it in one sentence.
        target: validation accuracy that `reached` is about; nan if no run has a validation.
        arms: the figures of each arm by its label.
    """

    comparison: Comparison
    claims: Sequence[Claim]
    headline: str
    target: float
    arms: Mapping[str, Mapping[str, Any]]


def compare(runs: Sequence[Run], *, baseline: str | None = None, target: float | None = None) -> Report:
    """Group runs into arms and judge them.

    Args:
        runs: all of them.
        baseline: label of the arm that the others are compared with; None is what the arms themselves say.
        target: validation accuracy in [0, 1] to be reached; None is what the worst arm ends at.

    Raises:
        RunError: the runs cannot be compared, see `group`.
    """
    comparison = group(runs, baseline=baseline)
    made = claims(comparison)
    if target is None:
        finals = [_mean([run.curve[-1].accuracy for run in _runs(arm) if run.curve]) for arm in comparison.arms]
        target = min((final for final in finals if not math.isnan(final)), default=float("nan"))
    arms = {arm.label: _figures(arm, target=target) for arm in comparison.arms}
    said = headline(comparison, made) if made or len(arms) < 2 else _best(arms)
    return Report(comparison=comparison, claims=made, headline=said, target=target, arms=arms)


def write(report: Report, target: Path) -> None:
    """Write the page, and the same figures beside it as `.json`."""
    renderer = environment()
    renderer.filters |= {"accuracy": _accuracy, "duration": _duration, "points": _points, "p": p_text, "more": _more}
    page = renderer.get_template("comparison.html.j2").render(
        report=report,
        comparison=report.comparison,
        signs=[plots.mark(index) for index in range(len(report.arms))],
        plots=_plots(report),
        forest=Markup(plots.differences(report.claims)) if report.claims else None,
        parts=_PARTS,
        rules={
            "equal": f"{100 * EQUAL:g} %",
            "less": f"{100 * LESS:g} %",
            "margin": f"{100 * MARGIN:g}",
            "pairs": MIN_PAIRS,
        },
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, page)
    write_atomically(target.with_suffix(".json"), json.dumps(_plain(_content(report)), indent=1, allow_nan=False))


def printed(report: Report) -> Iterator[RenderableType]:
    """What the terminal shows: the verdicts and a row an arm."""
    yield Text(report.headline, style="bold")
    yield Text()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("arm", overflow="fold")
    for heading in ("n", "test accuracy", "FLOPs", "growth", "params", "MACs", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, arm in report.arms.items():
        accuracy = _accuracy(arm["test_accuracy"])
        cells = [str(arm["n"]), accuracy, formatting.number(arm["flops"]), formatting.percent(arm["growth_share"])]
        cells += [
            formatting.number(arm["num_parameters"]),
            formatting.number(arm["num_macs"]),
            _duration(arm["seconds"]),
        ]
        table.add_row(Text(label), *cells)
    yield table
    yield Text()
    style = {"yes": "green", "no": "yellow"}
    for claim in report.claims:
        yield Text(claim.sentence, style=style.get(claim.verdict, ""))
    for claim in report.claims:
        if claim.warning:
            yield Text(claim.warning, style="yellow")
        if claim.unpaired:
            seeds = ", ".join(map(str, claim.unpaired))
            yield Text(f"unpaired, {claim.ours} against {claim.other}: seeds {seeds}", style="yellow")
    for gone in report.comparison.left_out:
        yield Text(f"left out: {gone.run.name}: {gone.why}", style="yellow")
    for warning in report.comparison.warnings:
        yield Text(warning, style="yellow")


def _best(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Which arm to choose where none is the baseline; by validation, as the test set must not choose."""
    known = {label: arm["val_accuracy"] for label, arm in arms.items() if not math.isnan(arm["val_accuracy"][0])}
    if not known:
        return "Nothing is claimed about these runs."
    label = max(known, key=lambda one: known[one][0])
    return f"Highest validation accuracy: {label}, {_accuracy(known[label])}."


def _runs(arm: Arm) -> list[Run]:
    return list(arm.runs.values())


def _figures(arm: Arm, *, target: float) -> dict[str, Any]:
    """Means over the runs of an arm; accuracy and loss with half their interval."""
    runs = _runs(arm)
    means = {
        name: _mean([run.figure(name) for run in runs])
        for name in ("num_parameters", "num_macs", "total_macs", "seconds")
    }
    peaks = [float(run.result["peak_parameters"]) for run in runs if run.result and "peak_parameters" in run.result]
    charged = {part: _charged(runs, part) for part in _PARTS}
    growth = _mean([run.figure("growth_macs") / run.figure("total_macs") for run in runs])
    return {
        "n": len(runs),
        "seeds": sorted(arm.runs),
        "val_accuracy": mean_interval(np.array([_val_accuracy(run) for run in runs])),
        "test_accuracy": mean_interval(np.array([run.accuracy for run in runs])),
        "test_loss": mean_interval(np.array([run.figure("test_loss") for run in runs])),
        "flops": _mean([run.flops for run in runs]),
        "growth_share": growth,
        "peak_parameters": _mean(peaks) if peaks else None,
        **means,
        "charged_flops": charged,
        "reached": _reached(runs, target=target),
    }


def _val_accuracy(run: Run) -> float:
    """Validation accuracy of its last step; nan if a run does not tell, as the first ones do not."""
    value = (run.result or {}).get("val_accuracy")
    return float("nan") if value is None else float(value)


def _charged(runs: Sequence[Run], part: str) -> float | None:
    """Mean FLOPs that went into a part of the work; None if a run does not tell, as the first ones do not."""
    found = [run.result[f"{part}_macs"] for run in runs if run.result and f"{part}_macs" in run.result]
    return 2 * _mean(found) if len(found) == len(runs) else None


def _reached(runs: Sequence[Run], *, target: float) -> dict[str, Any]:
    """How many runs reached the target, and the median cost until then, where a run that never did costs infinity."""
    first = [next((point for point in run.curve if point.accuracy >= target), None) for run in runs]
    spent = float(np.median([flops(point.macs) if point else math.inf for point in first]))
    seconds = float(np.median([point.seconds if point else math.inf for point in first]))
    return {
        "num_runs": sum(point is not None for point in first),
        "flops": spent if math.isfinite(spent) else None,
        "seconds": seconds if math.isfinite(seconds) else None,
    }


def _plots(report: Report) -> list[tuple[str, Markup]]:
    arms = report.comparison.arms
    if not arms:
        return []
    drawn = [
        ("Accuracy against compute", plots.accuracy_against(arms, "total_macs", "FLOPs spent")),
        ("Accuracy against size", plots.accuracy_against(arms, "num_parameters", "parameters")),
        ("Accuracy against wall time", plots.accuracy_against(arms, "seconds", "seconds")),
    ]
    if not math.isnan(report.target):
        drawn.append(("On the way", plots.accuracy_over_flops(arms, target=report.target)))
    return [(title, Markup(drawing)) for title, drawing in drawn]


def _content(report: Report) -> dict[str, Any]:
    """The report as plain data."""
    comparison = report.comparison
    runs = [(arm.label, seed, run) for arm in comparison.arms for seed, run in sorted(arm.runs.items())]
    return {
        "headline": report.headline,
        "baseline": comparison.baseline,
        "target": report.target,
        "arms": report.arms,
        "claims": [
            {
                **{field.name: getattr(claim, field.name) for field in dataclasses.fields(claim)},
                "differences": claim.differences.tolist(),
                "test": {name: float(value) for name, value in claim.test._asdict().items()},
                "spent": claim.spent._asdict(),
                "sentence": claim.sentence,
                "warning": claim.warning,
            }
            for claim in report.claims
        ],
        "runs": [{"arm": arm, "seed": seed, "name": run.name, "result": run.result} for arm, seed, run in runs],
        "left_out": [{"name": gone.run.name, "arm": gone.label, "why": gone.why} for gone in comparison.left_out],
        "warnings": comparison.warnings,
    }


def _plain(value: Any) -> Any:
    """Numbers that are not finite as null: strict JSON has none."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _accuracy(value: tuple[float, float]) -> str:
    """Mean and half its interval: `93.21 ± 0.40 %`."""
    mean, half = value
    if math.isnan(mean):
        return "–"
    return f"{100 * mean:.2f} %" if math.isnan(half) else f"{100 * mean:.2f} ± {100 * half:.2f} %"


def _duration(seconds: float | None) -> str:
    """Like `clock`, with a decimal below ten seconds."""
    return f"{seconds:.1f} s" if seconds is not None and seconds < 10 else formatting.clock(seconds)


def _points(difference: float) -> str:
    return "–" if math.isnan(difference) else f"{100 * difference:+.2f}"


def _more(cost: float) -> str:
    return "–" if math.isnan(cost) else f"{100 * cost:+.1f} %"
