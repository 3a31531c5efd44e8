"""Group runs into the arms of a comparison, and warn of settings that should not differ between arms."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from esper.configs.comparison import ARMS
from esper.configs.identity import is_operational
from esper.errors import RunError
from esper.report.runs import ComparedRun

__all__ = ["Arm", "Comparison", "LeftOut", "group"]

_MATCHED = ("static_flops", "final_flops", "final_seconds")
"""Arms whose number of epochs is computed from what the grown run spent."""
_NOT_COMPARED = ("replaced", "not in the sweep")
_MAX_LABEL = 48


@dataclass(frozen=True, kw_only=True)
class Arm:
    """The finished runs of one arm, by `rng_seed`."""

    label: str
    runs: Mapping[int, ComparedRun]
    enables_growth: bool


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
        baseline: label of the arm that the claims are relative to; None: no claims.
        is_fair: whether the arms are those of `experiment=fair_comparison`, with one claim of `grown` against each.
        left_out: runs that are in no arm.
        warnings: sentences about differences that make the arms hard to compare.
    """

    arms: Sequence[Arm]
    baseline: str | None
    is_fair: bool
    left_out: Sequence[LeftOut]
    warnings: Sequence[str]

    @property
    def pairs(self) -> Iterator[tuple[Arm, Arm]]:
        """The two arms of each claim: "ours against other"."""
        base = next((arm for arm in self.arms if arm.label == self.baseline), None)
        for arm in self.arms:
            if base is not None and arm is not base:
                yield (base, arm) if self.is_fair else (arm, base)


def group(runs: Sequence[ComparedRun], *, baseline: str | None = None) -> Comparison:
    """Group runs into arms.

    In a sweep, runs with the same overrides are an arm, whatever their seed; without a sweep, runs with the same
    settings. If `comparison.arm` is set and nothing else was swept, it is the arm.

    Args:
        runs: all of them, finished or not.
        baseline: label of the arm to compare the others with; None: `grown` of a fair comparison, else the only arm
            without growth.

    Raises:
        RunError: a run used early stopping, two runs have the same arm and seed, or there is no such baseline.
    """
    _refuse_early_stopping(runs)
    swept = _swept(runs)
    is_fair = any(_arm(run) for run in runs) and set(swept or ()) <= {"arm"}
    compared = _distinguishing(runs) if swept is None else swept
    values = [run.settings if swept is None else run.overrides or {} for run in runs]
    labels = [_arm(run) or "" for run in runs] if is_fair else _labels(values, compared)
    arms_by_label, left_out = _sort_runs(runs, labels)
    order = [arm for arm in ARMS if arm in arms_by_label] if is_fair else sorted(arms_by_label)
    arms = [Arm(label=label, runs=arms_by_label[label], enables_growth=_grows(arms_by_label[label])) for label in order]
    warnings = [*_machine_differences(arms)]
    if is_fair or swept is None:  # members of a sweep are meant to differ
        warnings = [*_recipe_differences(arms, is_fair=is_fair, compared=compared), *warnings]
    base = "grown" if is_fair and "grown" in arms_by_label else None
    if baseline is not None:
        if baseline not in arms_by_label:
            raise RunError(f"--baseline {baseline!r}: the arms with finished runs are {', '.join(order)}; name one")
        base, is_fair = baseline, False
    elif not is_fair:
        static = [arm.label for arm in arms if not arm.enables_growth]
        base = static[0] if len(static) == 1 else None
    if base is None and len(arms) > 1:
        missing = "arm grown has no finished run" if is_fair else "there is not exactly one arm without growth"
        warnings.append(f"No claims: {missing}. Use --baseline LABEL to compare every other arm with that one.")
    return Comparison(arms=arms, baseline=base, is_fair=is_fair, left_out=left_out, warnings=warnings)


def _refuse_early_stopping(runs: Sequence[ComparedRun]) -> None:
    for run in runs:
        patience = run.settings.get("optimization.patience", "null")
        if run.status not in _NOT_COMPARED and patience != "null":
            raise RunError(
                f"{run.name}: optimization.patience={patience} may stop it early, so budgets are not equal; train "
                "again with optimization.patience=null"
            )


def _sort_runs(
    runs: Sequence[ComparedRun], labels: Sequence[str]
) -> tuple[dict[str, dict[int, ComparedRun]], list[LeftOut]]:
    """Runs by arm and seed, and those left out."""
    arms: dict[str, dict[int, ComparedRun]] = {}
    left_out = []
    for run, label in zip(runs, labels, strict=True):
        if reason := _why_left_out(run, label):
            left_out.append(LeftOut(run=run, label=label, reason=reason))
            continue
        seeds = arms.setdefault(label, {})
        if run.seed in seeds:
            raise RunError(f"{run.name} and {seeds[run.seed].name} are both {label}, seed {run.seed}; name one of them")
        seeds[run.seed] = run
    return arms, left_out


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
        return "has no comparison.arm, other runs have"
    if run.result is None or run.result.get("test_accuracy") is None:
        return "finished without a test accuracy"
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
        is_epochs = is_fair and name == "optimization.max_epochs"
        labels_by_value: dict[str, list[str]] = {}
        for arm in arms:
            if not (is_epochs and arm.label in _MATCHED):
                for value in {run.settings.get(name, "null") for run in arm.runs.values()}:
                    labels_by_value.setdefault(value, []).append(arm.label)
        if len(labels_by_value) > 1:
            values = "; ".join(f"{value} ({', '.join(labels)})" for value, labels in sorted(labels_by_value.items()))
            yield f"The arms also differ in a setting that is not compared: {name} is {values}."


def _machine_differences(arms: Collection[Arm]) -> Iterator[str]:
    machines = sorted({run.machine for arm in arms for run in arm.runs.values()})
    if len(machines) > 1:
        yield f"Wall times cannot be compared: the runs used different hardware: {'; '.join(machines)}."
