"""Runs grouped into arms: what is compared, what is left out, and what the arms should have had in common."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from esper.configs.comparison import ARMS
from esper.configs.identity import is_operational
from esper.errors import RunError
from esper.report.runs import Run

__all__ = ["Arm", "Comparison", "LeftOut", "group"]

_BUDGETED = ("static_flops", "final_flops", "final_seconds")
"""Arms whose epochs follow from what the grown run spent."""
_OUTSIDE = ("set aside", "not of the sweep")
_MAX_LABEL = 48


@dataclass(frozen=True, kw_only=True)
class Arm:
    """The finished runs of one arm by their seed."""

    label: str
    runs: Mapping[int, Run]
    enables_growth: bool


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A run that is in no arm's numbers, and why."""

    run: Run
    label: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared.

    Attributes:
        arms: those with a finished run at least, in the order in which they are shown.
        baseline: label of the arm that has no claim of its own; None: there is nothing to claim.
        is_fair: whether the arms are those of `experiment=fair_comparison`, and the claims those of `grown`.
        left_out: runs without figures.
        warnings: sentences on what the arms should have had in common.
    """

    arms: Sequence[Arm]
    baseline: str | None
    is_fair: bool
    left_out: Sequence[LeftOut]
    warnings: Sequence[str]

    @property
    def pairs(self) -> Iterator[tuple[Arm, Arm]]:
        """The arms of each claim: the one that it is about, and the other."""
        base = next((arm for arm in self.arms if arm.label == self.baseline), None)
        for arm in self.arms:
            if base is not None and arm is not base:
                yield (base, arm) if self.is_fair else (arm, base)


def group(runs: Sequence[Run], *, baseline: str | None = None) -> Comparison:
    """Group runs into arms: by `comparison.arm` if nothing else was swept, else by what was, or without a sweep by the
    settings in which they differ besides the seed.

    Args:
        runs: all of them, finished or not.
        baseline: label of the arm that the others are compared with; None is what the arms themselves say.

    Raises:
        RunError: a run was allowed to stop early, two runs are the same arm and seed, or there is no such baseline.
    """
    for run in runs:
        if run.status not in _OUTSIDE and run.settings.get("optimization.patience", "null") != "null":
            raise RunError(
                f"{run.name}: optimization.patience={run.settings['optimization.patience']} stopped it when its "
                "validation said so, which no comparison survives; train again with optimization.patience=null"
            )
    swept = _swept(runs)
    is_fair = any(_arm(run) for run in runs) and set(swept or ()) <= {"arm"}
    compared = _told_apart_by(runs) if swept is None else swept
    asked = [run.settings if swept is None else run.overrides or {} for run in runs]
    labels = [_arm(run) or "" for run in runs] if is_fair else _labels(asked, compared)
    arms: dict[str, dict[int, Run]] = {}
    left_out = []
    for run, label in zip(runs, labels, strict=True):
        if why := _why_not(run, label):
            left_out.append(LeftOut(run=run, label=label, why=why))
            continue
        seeds = arms.setdefault(label, {})
        if run.seed in seeds:
            raise RunError(f"{run.name} and {seeds[run.seed].name} are both {label}, seed {run.seed}; name one of them")
        seeds[run.seed] = run
    order = [arm for arm in ARMS if arm in arms] if is_fair else sorted(arms)
    found = [Arm(label=label, runs=arms[label], enables_growth=_grows(arms[label])) for label in order]
    warnings = [*_machine_differences(found)]
    if is_fair or swept is None:  # what was swept is meant to differ, with all that comes of it
        warnings = [*_recipe_differences(found, is_fair=is_fair, compared=compared), *warnings]
    base = "grown" if is_fair and "grown" in arms else None
    if baseline is not None:
        if baseline not in arms:
            raise RunError(f"--baseline {baseline!r}: the arms with finished runs are {', '.join(order)}; name one")
        base, is_fair = baseline, False
    elif not is_fair:
        static = [arm.label for arm in found if not arm.enables_growth]
        base = static[0] if len(static) == 1 else None
    if base is None and len(found) > 1:
        missing = "no finished run of arm grown" if is_fair else "no single arm without growth to be the baseline"
        warnings.append(f"Nothing is claimed: there is {missing}. With --baseline LABEL every other arm is.")
    return Comparison(arms=found, baseline=base, is_fair=is_fair, left_out=left_out, warnings=warnings)


def _arm(run: Run) -> str | None:
    arm = run.settings.get("comparison.arm", "null")
    return None if arm == "null" else arm


def _grows(runs: Mapping[int, Run]) -> bool:
    return any(run.settings.get("morphogenetic.enable_tamiyo") != "false" for run in runs.values())


def _why_not(run: Run, label: str) -> str:
    """Why a run has no figures to compare; empty if it has."""
    if run.status != "finished":
        return f"{run.status}: {run.reason}" if run.reason else run.status
    if not label:
        return "has no comparison.arm, the others have"
    if run.result is None or run.result.get("test_accuracy") is None:
        return "finished without a test accuracy"
    return ""


def _is_compared(name: str) -> bool:
    """Whether runs that differ in this setting or group belong to different arms."""
    return not is_operational(name) and name not in ("rng_seed", "dataset.data_dir")


def _differing(runs: Sequence[Run]) -> list[str]:
    """Names of the settings that matter and differ; growth first, as it is what is compared."""
    begun = [run for run in runs if run.settings]
    names = sorted({name for run in begun for name in run.settings if _is_compared(name)})
    found = [name for name in names if len({run.settings.get(name) for run in begun}) > 1]
    return sorted(found, key=lambda name: (not name.startswith("morphogenetic.enable"), not name.startswith("morph")))


def _told_apart_by(runs: Sequence[Run]) -> Sequence[str]:
    """As few settings as tell the arms apart; what else differs goes along with these."""
    chosen: list[str] = []
    num_told = 1
    for name in _differing(runs):
        tried = [*chosen, name]
        told = {tuple(run.settings.get(key) for key in tried) for run in runs if run.settings}
        if len(told) > num_told:
            chosen, num_told = tried, len(told)
    return chosen


def _swept(runs: Sequence[Run]) -> Sequence[str] | None:
    """What sweeps asked differently of their members, besides the seed; None if a run is no member of one."""
    asked = [run.overrides for run in runs if run.status not in _OUTSIDE]
    if not asked or None in asked:
        return None
    given = [one for one in asked if one is not None]
    names = dict.fromkeys(name for one in given for name in one if _is_compared(name))
    return [name for name in names if len({one.get(name) for one in given}) > 1]


def _labels(asked: Sequence[Mapping[str, str]], chosen: Sequence[str]) -> list[str]:
    full = [", ".join(f"{name}={one.get(name, '–')}" for name in chosen) for one in asked]
    if max(map(len, full)) > _MAX_LABEL:
        short = [(name, name.rpartition(".")[2]) for name in chosen]
        full = [", ".join(f"{last}={one.get(name, '–')}" for name, last in short) for one in asked]
    return [label or "all runs" for label in full]


def _recipe_differences(arms: Sequence[Arm], *, is_fair: bool, compared: Sequence[str]) -> Iterator[str]:
    runs = [run for arm in arms for run in arm.runs.values()]
    for name in _differing(runs):
        if name.startswith(("morphogenetic.", "comparison.")) or name in compared:
            continue
        is_epochs = is_fair and name == "optimization.max_epochs"
        values: dict[str, list[str]] = {}
        for arm in arms:
            if not (is_epochs and arm.label in _BUDGETED):
                for value in {run.settings.get(name, "null") for run in arm.runs.values()}:
                    values.setdefault(value, []).append(arm.label)
        if len(values) > 1:
            told = "; ".join(f"{value} ({', '.join(labels)})" for value, labels in sorted(values.items()))
            yield f"The recipes differ in more than what is compared: {name} is {told}."


def _machine_differences(arms: Collection[Arm]) -> Iterator[str]:
    machines = sorted({run.machine for arm in arms for run in arm.runs.values()})
    if len(machines) > 1:
        yield f"Wall times cannot be compared: the runs were made on {'; '.join(machines)}."
