"""Group runs into the arms of a comparison, and warn of settings that should not differ between arms."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from esper.configs.comparison import ARMS
from esper.configs.identity import is_operational
from esper.contracts.metrics import ACCURACY, MetricInfo
from esper.errors import RunError
from esper.report.runs import ComparedRun
from esper.tracking.formatting import number

__all__ = ["Arm", "Comparison", "LeftOut", "group"]

_BUDGETS = ("optimization.max_macs", "optimization.max_epochs")
"""Settings that a fair comparison may sweep besides the arm: each value is a comparison of its own."""
_NOT_COMPARED = ("replaced", "not in the sweep")
_MAX_LABEL = 48


@dataclass(frozen=True, kw_only=True)
class Arm:
    """The finished runs of one arm.

    Attributes:
        label: tells it from the others; of a fair comparison its name, and the budget if there are several.
        runs: by `rng_seed`.
        enables_growth: whether its network may grow, or is one that grew.
        name: of a fair comparison its name in `configs.comparison.ARMS`, else empty.
        budget: length of the grown run's training, if the comparison has several, else empty.
    """

    label: str
    runs: Mapping[int, ComparedRun]
    enables_growth: bool
    name: str = ""
    budget: str = ""

    @property
    def words(self) -> str:
        """What it is, without the budget."""
        return ARMS[self.name].words if self.name else self.label

    @property
    def title(self) -> str:
        """What it is; tells it from the others, as the label does."""
        return f"{self.words} at {self.budget}" if self.budget else self.words

    @property
    def figure(self) -> float:
        """Mean of the leading metric on the test split."""
        return sum(run.figure for run in self.runs.values()) / len(self.runs)

    def mean(self, metric: str) -> float:
        """Mean of a metric of the results."""
        return sum(run.metric(metric) for run in self.runs.values()) / len(self.runs)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A run that is not part of the comparison, and the reason."""

    run: ComparedRun
    label: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs grouped into arms.

    Attributes:
        arms: arms with at least one finished run, in display order.
        baseline: label of the arm that the claims are relative to, of a fair comparison `grown`; None: no claims.
        is_fair: whether the arms are those of `experiment=fair_comparison`, with one claim of `grown` against each.
        headline: the metric that all runs lead with.
        left_out: runs that are in no arm.
        warnings: sentences about differences that make the arms hard to compare.
    """

    arms: Sequence[Arm]
    baseline: str | None
    is_fair: bool
    left_out: Sequence[LeftOut]
    warnings: Sequence[str]
    headline: MetricInfo = ACCURACY

    @property
    def pairs(self) -> Iterator[tuple[Arm, Arm]]:
        """The two arms of each claim: "ours against other"."""
        for arm in self.arms:
            base = self.at(arm.budget).get("grown") if self.is_fair else self._base
            if base is not None and arm is not base:
                yield (base, arm) if self.is_fair else (arm, base)

    @property
    def budgets(self) -> list[str]:
        """The budgets of a fair comparison, smallest first; one of them, empty, if nothing but the arm was swept."""
        return list(dict.fromkeys(arm.budget for arm in self.arms))

    def at(self, budget: str) -> dict[str, Arm]:
        """The arms of a fair comparison at one budget, by name."""
        return {arm.name: arm for arm in self.arms if arm.budget == budget}

    @property
    def _base(self) -> Arm | None:
        return next((arm for arm in self.arms if arm.label == self.baseline), None)


def group(runs: Sequence[ComparedRun], *, baseline: str | None = None) -> Comparison:
    """Group runs into arms.

    In a sweep, runs with the same overrides are an arm, whatever their seed; without a sweep, runs with the same
    settings. If `comparison.arm` is set and nothing was swept but this and the budget, they are the arm.

    Args:
        runs: all of them, finished or not.
        baseline: label of the arm to compare the others with; None: `grown` of a fair comparison, else the only arm
            without growth.

    Raises:
        RunError: a run used early stopping, runs lead with different metrics, two runs have the same arm and seed, or
            there is no such baseline.
    """
    _refuse_early_stopping(runs)
    headline = _common_headline(runs)
    swept = _swept(runs)
    is_fair = any(_arm(run) for run in runs) and set(swept or ()) <= {"arm", *_BUDGETS}
    compared = _distinguishing(runs) if swept is None else swept
    values = [run.settings if swept is None else run.overrides or {} for run in runs]
    keys = _fair_keys(runs) if is_fair else [_Key(label) for label in _labels(values, compared)]
    arms_by_key, left_out = _sort_runs(runs, keys)
    arms = [
        Arm(label=key.label, runs=found, enables_growth=_grows(found), name=key.name, budget=key.budget)
        for key, found in sorted(arms_by_key.items(), key=lambda item: item[0].order)
    ]
    order = [arm.label for arm in arms]
    warnings = [*_equal_settings(arms), *_machine_differences(arms)]
    if is_fair or swept is None:  # members of a sweep are meant to differ
        warnings = [*_recipe_differences(arms, is_fair=is_fair, compared=compared), *warnings]
    without = [budget for budget in dict.fromkeys(arm.budget for arm in arms) if not _has_grown(arms, budget)]
    base = "grown" if is_fair and any(arm.name == "grown" for arm in arms) else None
    if baseline is not None:
        if baseline not in order:
            raise RunError(f"--baseline {baseline!r}: the arms with finished runs are {', '.join(order)}; name one")
        base, is_fair = baseline, False
    elif not is_fair:
        static = [arm.label for arm in arms if not arm.enables_growth]
        base = static[0] if len(static) == 1 else None
    if base is None and len(arms) > 1:
        missing = "arm grown has no finished run" if is_fair else "there is not exactly one arm without growth"
        warnings.append(f"No claims: {missing}. Use --baseline LABEL to compare every other arm with that one.")
    elif is_fair and without:
        warnings.append(f"No claims at {', '.join(without)}: arm grown has no finished run there.")
    return Comparison(
        arms=arms, baseline=base, is_fair=is_fair, left_out=left_out, warnings=warnings, headline=headline
    )


def _common_headline(runs: Sequence[ComparedRun]) -> MetricInfo:
    """The metric that all finished runs lead with."""
    first: dict[str, ComparedRun] = {}
    for run in runs:
        if run.status == "finished":
            first.setdefault(run.headline.name, run)
    if len(first) > 1:
        led = "; ".join(f"{run.name} by {run.headline.label}" for run in first.values())
        raise RunError(f"runs of different tasks cannot be compared: {led}; name runs of one task")
    return next(iter(first.values())).headline if first else ACCURACY


def _refuse_early_stopping(runs: Sequence[ComparedRun]) -> None:
    for run in runs:
        patience = run.settings.get("optimization.patience", "null")
        if run.status not in _NOT_COMPARED and patience != "null":
            raise RunError(
                f"{run.name}: optimization.patience={patience} may stop it early, so budgets are not equal; train "
                "again with optimization.patience=null"
            )


class _Key(NamedTuple):
    """What tells an arm from the others; runs with an empty label are in no arm."""

    label: str
    name: str = ""
    budget: str = ""
    length: tuple[bool, float] = (False, 0.0)

    @property
    def order(self) -> tuple[object, ...]:
        """By budget, then as in the table of arms, then by label."""
        return self.length, list(ARMS).index(self.name) if self.name else 0, self.label


def _fair_keys(runs: Sequence[ComparedRun]) -> list[_Key]:
    """The arms of a fair comparison: by name, and by budget if there are several.

    The budget of an arm is the configured length of the grown run that it is compared with.
    """
    by_name = {run.name: run for run in runs}
    lengths: list[tuple[bool, float] | None] = []
    for run in runs:
        grown_run = run.settings.get("comparison.grown_run", "null")
        settings = run.settings if grown_run == "null" else by_name[grown_run].settings if grown_run in by_name else {}
        lengths.append(_length(settings))
    known = {length for length, run in zip(lengths, runs, strict=True) if length and run.status not in _NOT_COMPARED}
    if len(known) < 2:
        return [_Key(_arm(run) or "", _arm(run) or "") for run in runs]
    keys = []
    for run, length in zip(runs, lengths, strict=True):
        arm = _arm(run)
        if arm is None or length is None:
            keys.append(_Key(""))
            continue
        is_macs, value = length
        budget = f"{number(value)} MACs" if is_macs else f"{value:g} epochs"
        if is_macs and sum(number(value) == number(other) for also_macs, other in known if also_macs) > 1:
            budget = f"{value:.6g} MACs"
        keys.append(_Key(f"{arm}, {budget}", arm, budget, length))
    return keys


def _length(settings: Mapping[str, str]) -> tuple[bool, float] | None:
    """The configured length of training: whether it is in MACs, and how much; None if it is unknown."""
    for name in _BUDGETS:
        if (value := settings.get(name, "null")) != "null":
            return name == "optimization.max_macs", float(value)
    return None


def _has_grown(arms: Sequence[Arm], budget: str) -> bool:
    return any(arm.name == "grown" and arm.budget == budget for arm in arms)


def _sort_runs(
    runs: Sequence[ComparedRun], keys: Sequence[_Key]
) -> tuple[dict[_Key, dict[int, ComparedRun]], list[LeftOut]]:
    """Runs by arm and seed, and those left out."""
    arms: dict[_Key, dict[int, ComparedRun]] = {}
    left_out = []
    for run, key in zip(runs, keys, strict=True):
        if reason := _why_left_out(run, key.label):
            left_out.append(LeftOut(run=run, label=key.label, reason=reason))
            continue
        seeds = arms.setdefault(key, {})
        if run.seed in seeds:
            raise RunError(
                f"{seeds[run.seed].name} and {run.name} are both {key.label}, seed {run.seed}; "
                f"{_how_to_choose(runs, keys)}"
            )
        seeds[run.seed] = run
    return arms, left_out


def _how_to_choose(runs: Sequence[ComparedRun], keys: Sequence[_Key]) -> str:
    """The command that compares the same runs, but only the first of each arm and seed."""
    chosen, seen = [], set[tuple[_Key, int]]()
    for run, key in zip(runs, keys, strict=True):
        if run.status in _NOT_COMPARED:  # would be compared if it were named
            continue
        if not _why_left_out(run, key.label):
            if (key, run.seed) in seen:
                continue
            seen.add((key, run.seed))
        chosen.append(run)
    folders = [str(run.folder) for run in chosen if run.folder is not None]
    if len(folders) < len(chosen):
        return "delete the second in MLflow, or give the folders of the other runs instead of --mlflow"
    here = f"{Path.cwd()}{os.sep}"
    command = shlex.join(["esper", "report", *(folder.removeprefix(here) for folder in folders)])
    return f"to compare without the second: {command}"


def _arm(run: ComparedRun) -> str | None:
    arm = run.settings.get("comparison.arm", "null")
    return None if arm == "null" else arm


def _grows(runs: Mapping[int, ComparedRun]) -> bool:
    return any(run.settings.get("morphogenetic.enable_tamiyo") != "false" for run in runs.values())


def _why_left_out(run: ComparedRun, label: str) -> str:
    """Why a run cannot be compared; empty if it can."""
    if run.status != "finished":
        return f"{run.status}: {run.reason}" if run.reason else run.status
    if not label:
        known = "has no comparison.arm, other runs have"
        return known if _arm(run) is None else "its grown run is not among these, so that its budget is unknown"
    if run.result is None or run.result.get(f"test_{run.headline.name}") is None:
        return f"finished without a test {run.headline.label}"
    return ""


def _is_compared(name: str) -> bool:
    """Whether runs that differ in this setting or group belong to different arms."""
    return not is_operational(name) and name not in ("rng_seed", "dataset.data_dir")


def _differing(runs: Sequence[ComparedRun]) -> list[str]:
    """The compared settings that differ between runs; those of growth first."""
    started = [run for run in runs if run.settings]
    names = sorted({name for run in started for name in run.settings if _is_compared(name)})
    differing = [name for name in names if len({run.settings.get(name) for run in started}) > 1]
    return sorted(
        differing, key=lambda name: (not name.startswith("morphogenetic.enable"), not name.startswith("morph"))
    )


def _distinguishing(runs: Sequence[ComparedRun]) -> Sequence[str]:
    """A minimal list of settings whose values identify the arms."""
    chosen: list[str] = []
    num_arms = 1
    for name in _differing(runs):
        candidate = [*chosen, name]
        arms = {tuple(run.settings.get(key) for key in candidate) for run in runs if run.settings}
        if len(arms) > num_arms:
            chosen, num_arms = candidate, len(arms)
    return chosen


def _swept(runs: Sequence[ComparedRun]) -> Sequence[str] | None:
    """The overrides that differ between the members of sweeps, without the seed; None if a run is not a member."""
    overrides = [run.overrides for run in runs if run.status not in _NOT_COMPARED]
    members = [values for values in overrides if values is not None]
    if not members or len(members) < len(overrides):
        return None
    names = dict.fromkeys(name for values in members for name in values if _is_compared(name))
    return [name for name in names if len({values.get(name) for values in members}) > 1]


def _labels(settings: Sequence[Mapping[str, str]], names: Sequence[str]) -> list[str]:
    labels = [", ".join(f"{name}={values.get(name, '–')}" for name in names) for values in settings]
    if max(map(len, labels)) > _MAX_LABEL:
        short = [(name, name.rpartition(".")[2]) for name in names]
        labels = [", ".join(f"{last}={values.get(name, '–')}" for name, last in short) for values in settings]
    return [label or "all runs" for label in labels]


def _recipe_differences(arms: Sequence[Arm], *, is_fair: bool, compared: Sequence[str]) -> Iterator[str]:
    runs = [run for arm in arms for run in arm.runs.values()]
    for name in _differing(runs):
        if name.startswith(("morphogenetic.", "comparison.", "model.init_")) or name in compared:
            continue
        is_budget = is_fair and name in _BUDGETS
        labels_by_value: dict[str, list[str]] = {}
        for arm in arms:
            if not (is_budget and arm.name and ARMS[arm.name].after):
                for value in {run.settings.get(name, "null") for run in arm.runs.values()}:
                    labels_by_value.setdefault(value, []).append(arm.label)
        if len(labels_by_value) > 1:
            values = "; ".join(f"{value} ({', '.join(labels)})" for value, labels in sorted(labels_by_value.items()))
            yield f"The arms also differ in a setting that is not compared: {name} is {values}."


def _equal_settings(arms: Sequence[Arm]) -> Iterator[str]:
    """Arms of sweeps that train the same, as under the names of two presets with equal settings."""
    labels: dict[frozenset[tuple[str, str]], list[str]] = {}
    for arm in arms:
        settings = next(iter(arm.runs.values())).settings.items()
        labels.setdefault(frozenset(item for item in settings if _is_compared(item[0])), []).append(arm.label)
    for same in labels.values():
        if len(same) > 1:
            yield f"{' and '.join(same)} have equal settings: with one seed they are the same training."


def _machine_differences(arms: Collection[Arm]) -> Iterator[str]:
    machines = sorted({run.machine for arm in arms for run in arm.runs.values()})
    if len(machines) > 1:
        yield f"Wall times cannot be compared: the runs used different hardware: {'; '.join(machines)}."
