"""What `growing.py` trains: the studies, and from a study to its cells, each an ordinary run of Esper."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from esper.configs import TolariaConfig
from esper.configs.check import check
from esper.configs.compose import compose
from esper.configs.identity import digest
from esper.configs.load import from_hydra
from esper.costs import count
from esper.data import DataSplits, load_splits
from esper.kasmina import wrap
from esper.models import build_host
from esper.tolaria.budget import plan_budget

__all__ = ["EXPERIMENT", "STATIC", "STUDIES", "TRUNK", "Cell", "Comparison", "plan"]

EXPERIMENT = "growing"
STATIC = ("host", "between", "final", "continue", "scratch")
"""Arms that do not grow; the best of them is what growing has to beat."""
TRUNK = "trunk"
"""The arm whose network, before its decay, the other arms of `capacity` start from."""

_FROM_TRUNK = "model.init_from=TRUNK"
"""Replaced by the folder of the trunk with the same seed."""

Overrides = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Arms at equal compute, paired by seed.

    Attributes:
        model: overrides of all arms.
        grown: those of a network that grows. What it ends with is the final network, whose epochs are the budgets.
        arms: overrides of each arm, besides `model`.
        budgets: (epochs of the final network, number of seeds), the most important first.
        reference: arm that the others are compared with besides the best static one.
        trunk_epochs: budget of the arm `trunk`, which runs first.
    """

    model: Overrides
    grown: Overrides
    arms: Mapping[str, Overrides]
    budgets: Sequence[tuple[Sequence[int], int]]
    reference: str | None = None
    trunk_epochs: int | None = None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run.

    Attributes:
        study: name of its comparison.
        arm, epochs, seed: its place in the study; epochs of the final network.
        overrides: of `esper-train`, without device.
        max_macs: its budget.
        digest: of everything that determines the result.
        run_dir: run folder.
        after: run folder of the cell that has to be finished first.
    """

    study: str
    arm: str
    epochs: int
    seed: int
    overrides: Overrides
    max_macs: int
    digest: str
    run_dir: Path
    after: Path | None = None

    @property
    def place(self) -> tuple[str, str, int, int]:
        """What tells it from the other cells."""
        return self.study, self.arm, self.epochs, self.seed

    def __str__(self) -> str:
        return f"{self.study}, {self.arm}, E={self.epochs}, seed {self.seed}"


# --- the studies ------------------------------------------------------------------------------------------------------

_OFF = ("morphogenetic=off",)
_SMALL = ("model=resnet_small", "model.widths=[16,32,64]")
_RESNET18_STACKED = Path(__file__).with_name("resnet18_stacked.json")


def _depth(blocks: int) -> Overrides:
    return (f"model.depths=[{blocks},{blocks},{blocks}]",)


def _stack(*at: float) -> Overrides:
    return "morphogenetic=stack", f"morphogenetic.schedule_at=[{','.join(map(str, at))}]"


def _stages(policy: str, num: int) -> Overrides:
    """Deepen so many stages, which the policy chooses."""
    return *_GROWN, f"morphogenetic.policy={policy}", f"morphogenetic.schedule_at=[{','.join(['0.3'] * num)}]"


def _replay(*overrides: str) -> Overrides:
    return "morphogenetic=replay", f"morphogenetic.recipe_path={_RESNET18_STACKED}", *overrides


_GROWN = (*_depth(2), *_stack(0.3))
_SIZES = {
    "host": (*_depth(2), *_OFF),
    "between": (*_depth(3), *_OFF),
    "final": (*_depth(4), *_OFF),
    "grown": _GROWN,
}
_FOUR_TIMES = (*_depth(2), *_stack(0.15, 0.35))

STUDIES: dict[str, dict[str, Comparison]] = {
    "claims": {
        "claims": Comparison(
            model=_SMALL, grown=_GROWN, arms=_SIZES, budgets=[((20, 40), 12), ((10, 80), 4)], reference="final"
        )
    },
    "ablation": {
        "ablation": Comparison(
            model=_SMALL,
            grown=_GROWN,
            arms={
                "grown": _GROWN,
                **{
                    setting: (*_GROWN, f"morphogenetic.{setting}")
                    for setting in (
                        "copy_init=trained", "copy_init=zeroed", "copy_init=fresh",
                        "copy_order=interleave", "schedule_at=[0.15]", "schedule_at=[0.25]", "schedule_at=[0.35]",
                        "schedule_at=[0.5]", "copy_optimizer_state=true", "newborn_warmup_steps=0",
                    )
                },
            },
            budgets=[((40,), 5)],
            reference="grown",
        ),
        "ablation, four times the depth": Comparison(
            model=_SMALL,
            grown=_FOUR_TIMES,
            arms={
                "host": (*_depth(2), *_OFF),
                "between": (*_depth(4), *_OFF),
                "final": (*_depth(8), *_OFF),
                "grown": _FOUR_TIMES,
            },
            budgets=[((40,), 5)],
            reference="final",
        ),
    },
    "controller": {
        "controller": Comparison(
            model=_SMALL,
            grown=_GROWN,
            arms={
                "all stages": _GROWN,
                **{
                    f"{policy}, {num} of 3 stages": _stages(policy, num)
                    for num in (1, 2)
                    for policy in ("heuristic", "random", "schedule")
                },
            },
            budgets=[((40,), 5)],
            reference="all stages",
        )
    },
    "capacity": {
        "capacity": Comparison(
            model=_SMALL,
            grown=_GROWN,
            arms={
                TRUNK: (*_depth(2), *_OFF, "checkpoint.save_trunk=true", "fresh=true"),
                "continue": (*_depth(2), *_OFF, _FROM_TRUNK),
                "scratch": (*_depth(4), *_OFF),
                "grown": (*_depth(2), *_stack(0.1), _FROM_TRUNK),
            },
            budgets=[((10, 20), 12)],
            reference="continue",
            trunk_epochs=20,
        )
    },
    "resnet18": {
        "resnet18": Comparison(
            model=("model=resnet18",),
            grown=_stack(0.3),
            arms={
                "host": _OFF,
                "between": _replay("morphogenetic.recipe_fraction=0.5"),
                "final": _replay(),
                "grown": _stack(0.3),
                "aggressive": ("morphogenetic=aggressive",),
            },
            budgets=[((15, 30), 4)],
            reference="host",
        )
    },
    "small": {
        "small": Comparison(
            model=("model=resnet_small", "model.widths=[8,16,32]"),
            grown=_GROWN,
            arms=_SIZES,
            budgets=[((40, 80), 12)],
            reference="final",
        )
    },
}  # fmt: skip


# --- from a study to its cells ----------------------------------------------------------------------------------------


def plan(
    study: str,
    *,
    data: Path,
    outputs: Path,
    seeds: Sequence[int],
    epochs: Sequence[int] | None = None,
    extra: Sequence[str] = (),
) -> list[Cell]:
    """The cells of a study: seed by seed, so that a run that is cut short leaves whole seeds.

    Args:
        study: key of `STUDIES`.
        data: image folder.
        outputs: parent of the experiments; holds the cache of decoded images.
        seeds: a budget with n seeds gets the first n.
        epochs: budgets instead of those of the study, with all seeds each; the longest is that of a trunk.
        extra: overrides for every cell, for other data.

    Raises:
        ConfigError, DataError: a cell cannot run.
    """
    common = (
        "dataset=imagefolder", f"dataset.data_dir={data}", "dataset.image_size=32", "dataset.batch_size=128",
        "optimization=sgd", "optimization.learning_rate=0.1", "optimization.decay_fraction=0.3",
        f"experiment_name={EXPERIMENT}", "tracking=none", "logging.log_level=ERROR",
        "checkpoint.save_best=false", "checkpoint.save_last=false", "checkpoint.save_interval=1000000",
        *extra,
    )  # fmt: skip
    cells: list[Cell] = []
    splits = None
    for name, comparison in STUDIES[study].items():
        budgets = comparison.budgets
        if epochs is not None:
            budgets = [(tuple(epochs), len(seeds))]
            comparison = dataclasses.replace(comparison, trunk_epochs=max(epochs))
        grown = _config((*comparison.model, *comparison.grown, *common))
        splits = splits or load_splits(grown.dataset, rng_seed=grown.rng_seed, cache_dir=outputs / "cache")
        for lengths, num_seeds in budgets:
            arms = list(_arms(name, comparison, common, lengths, grown=grown, splits=splits, outputs=outputs))
            cells += [cell for seed in seeds[:num_seeds] for cell in _with_seed(arms, seed)]
    return list({cell.place: cell for cell in cells}.values())  # a trunk serves several budgets


def _config(overrides: Sequence[str]) -> TolariaConfig:
    config = from_hydra(compose(overrides))
    check(config)
    return config


def _arms(
    name: str,
    comparison: Comparison,
    common: Overrides,
    lengths: Sequence[int],
    *,
    grown: TolariaConfig,
    splits: DataSplits,
    outputs: Path,
) -> Iterator[tuple[Cell, TolariaConfig]]:
    """The cells of one seed, which is not set yet, with their configurations."""
    for arm, overrides in comparison.arms.items():
        for epochs in [comparison.trunk_epochs or 0] if arm == TRUNK else lengths:
            max_macs = _budget(grown, epochs=epochs, splits=splits)
            given = (*comparison.model, *overrides, *common, f"optimization.max_macs={max_macs}")
            cell = Cell(
                study=name, arm=arm, epochs=epochs, seed=0, overrides=given, max_macs=max_macs, digest="",
                run_dir=outputs / EXPERIMENT,
            )  # fmt: skip
            yield cell, _config(given)


def _budget(grown: TolariaConfig, *, epochs: int, splits: DataSplits) -> int:
    """MACs of so many epochs of the network that the grown arm ends with, as the run itself counts them."""
    model, shape = grown.model, splits.train.shape
    host = build_host(model, splits.spec)
    return plan_budget(
        dataclasses.replace(grown.optimization, max_epochs=epochs),
        grown.morphogenetic,
        model=wrap(
            host,
            model.target_layers,
            model.seeds_per_layer,
            input_shape=shape,
            site_kinds=model.site_kinds,
        ),
        initial_cost=count(host, shape),
        steps_per_epoch=len(splits.train) // grown.dataset.batch_size,
        batch_size=grown.dataset.batch_size,
    ).total


def _with_seed(arms: Sequence[tuple[Cell, TolariaConfig]], seed: int) -> Iterator[Cell]:
    trunk: Path | None = None
    for cell, config in arms:
        overrides, after = (*cell.overrides, f"rng_seed={seed}"), None
        if config.model.init_from is not None:
            assert trunk is not None, "the trunk is the first arm"
            after = trunk
            start = f"model.init_from={trunk}/checkpoints/trunk"
            overrides = tuple(start if one == _FROM_TRUNK else one for one in overrides)
        # Neither where the data lies nor where the outputs go makes another run.
        identity = dataclasses.replace(
            config,
            rng_seed=seed,
            dataset=dataclasses.replace(config.dataset, data_dir=""),
            model=dataclasses.replace(config.model, init_from=after.name if after else None),
            morphogenetic=dataclasses.replace(
                config.morphogenetic, recipe_path=config.morphogenetic.recipe_path and _RESNET18_STACKED.name
            ),
        )
        found = digest(identity)
        run_dir = cell.run_dir / f"{cell.study}-{cell.arm}-{cell.epochs}-{seed}-{found}".translate(_FOR_FOLDERS)
        if cell.arm == TRUNK:
            trunk = run_dir
        yield dataclasses.replace(cell, seed=seed, overrides=overrides, digest=found, run_dir=run_dir, after=after)


_FOR_FOLDERS = str.maketrans({" ": "_", ",": None, "[": None, "]": None, "=": "_"})
