"""From a study of `growing.py` to its cells, each an ordinary run of Esper."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.growing_studies import (
    EPOCHS,
    FROM_TRUNK,
    RESNET18_STACKED,
    STUDIES,
    TRUNK,
    Comparison,
    Overrides,
)
from esper.configs import TolariaConfig
from esper.configs.check import check
from esper.configs.compose import compose
from esper.configs.identity import digest
from esper.configs.load import from_hydra
from esper.costs import count, training_macs
from esper.data import DataSplits, load_splits
from esper.kasmina import wrap
from esper.kasmina.copies import costs_of_doubling
from esper.models import build_host

__all__ = ["EXPERIMENT", "Cell", "plan"]

EXPERIMENT = "growing"
_WARMUP_STEPS = 100
"""Of the learning rate, in studies with `epoch_share`."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run.

    Attributes:
        study: name of its comparison.
        arm, budget, seed: its place in the study.
        overrides: of `esper-train`, without device.
        max_macs: its budget.
        digest: of everything that determines the result.
        run_dir: run folder.
        per_step, noun: what a step trains on: so many images or bytes.
        after: run folder of the cell that has to be finished first.
    """

    study: str
    arm: str
    budget: float
    seed: int
    overrides: Overrides
    max_macs: int
    digest: str
    run_dir: Path
    per_step: int = 1
    noun: str = "images"
    after: Path | None = None

    @property
    def place(self) -> tuple[str, str, float, int]:
        """What tells it from the other cells."""
        return self.study, self.arm, self.budget, self.seed

    def __str__(self) -> str:
        return f"{self.study}, {self.arm}, budget {self.budget:g}, seed {self.seed}"


def plan(
    study: str,
    *,
    data: Path,
    outputs: Path,
    seeds: Sequence[int],
    budgets: Sequence[float] | None = None,
    extra: Sequence[str] = (),
) -> list[Cell]:
    """The cells of a study: seed by seed, so that a run that is cut short leaves whole seeds; long ones first in each.

    Args:
        study: key of `STUDIES`.
        data: folder of images or text.
        outputs: parent of the experiments; holds the cache of decoded images.
        seeds: a budget with n seeds gets the first n.
        budgets: instead of those of the study, with all seeds each; the longest is that of a trunk.
        extra: overrides for every cell, for other data.

    Raises:
        ConfigError, DataError: a cell cannot run.
    """
    cells: list[Cell] = []
    splits = None
    for name, comparison in STUDIES[study].items():
        if budgets is not None:
            comparison = dataclasses.replace(
                comparison, budgets=[(tuple(budgets), len(seeds))], trunk_budget=max(budgets)
            )
        common = (
            f"dataset.data_dir={data}", f"experiment_name={EXPERIMENT}", "tracking=none", "logging.log_level=ERROR",
            "checkpoint.save_best=false", "checkpoint.save_interval=1000000", *extra,
        )  # fmt: skip
        comparison = dataclasses.replace(comparison, recipe=(*comparison.recipe, *common))
        grown = _config((*comparison.model, *comparison.grown, *comparison.recipe))
        splits = splits or load_splits(grown.dataset, rng_seed=grown.rng_seed, cache_dir=outputs / "cache")
        costs = _costs(grown, splits)
        for given, num_seeds in comparison.budgets:
            arms = list(_arms(name, comparison, given, costs=costs, outputs=outputs))
            for seed in seeds[:num_seeds]:  # a long cell that begins last would have the GPU to itself
                cells += sorted(_with_seed(arms, seed), key=lambda cell: (cell.arm != TRUNK, -cell.budget))
    return list({cell.place: cell for cell in cells}.values())  # a trunk serves several budgets


def _config(overrides: Sequence[str]) -> TolariaConfig:
    config = from_hydra(compose(overrides))
    check(config)
    return config


@dataclass(frozen=True, kw_only=True)
class _Costs:
    """MACs of training on one example, of the network that the grown arm begins and ends with; sizes of the data."""

    host: int
    final: int
    batch_size: int
    steps_per_epoch: int
    context: int

    def max_macs(self, budget: float, unit: str) -> int:
        """MACs of a budget."""
        num_examples = budget * 10**6 / self.context
        if unit == EPOCHS:
            num_examples = budget * self.steps_per_epoch * self.batch_size
        return round(num_examples) * self.final


def _costs(grown: TolariaConfig, splits: DataSplits) -> _Costs:
    """The costs, as the run itself counts them."""
    model, spec, growth = grown.model, splits.spec, grown.morphogenetic
    host = build_host(model, spec)
    first = training_macs(1, count(host, spec.inputs, dtype=spec.dtype).num_macs)
    network = wrap(
        host,
        model.target_layers,
        model.seeds_per_layer,
        input_shape=spec.inputs,
        input_dtype=spec.dtype,
        site_kinds=model.site_kinds,
    )
    added = costs_of_doubling(network, growth.copy_order, times=len(growth.schedule_at))[-1]
    return _Costs(
        host=first,
        final=first + training_macs(1, added.num_macs),
        batch_size=grown.dataset.batch_size,
        steps_per_epoch=len(splits.train) // grown.dataset.batch_size,
        context=grown.dataset.context,
    )


def _arms(
    name: str, comparison: Comparison, budgets: Sequence[float], *, costs: _Costs, outputs: Path
) -> Iterator[tuple[Cell, TolariaConfig]]:
    """The cells of one seed, which is not set yet, with their configurations."""
    for arm, overrides in comparison.arms.items():
        for budget in [comparison.trunk_budget or 0] if arm == TRUNK else budgets:
            max_macs = costs.max_macs(budget, comparison.unit)
            given = (
                *comparison.model, *overrides, *comparison.recipe, f"optimization.max_macs={max_macs}",
                *_epoch(comparison, max_macs, costs),
            )  # fmt: skip
            is_images = comparison.unit == EPOCHS
            cell = Cell(
                study=name, arm=arm, budget=budget, seed=0, overrides=given, max_macs=max_macs, digest="",
                run_dir=outputs / EXPERIMENT, noun="images" if is_images else "bytes",
                per_step=costs.batch_size * (1 if is_images else costs.context),
            )  # fmt: skip
            yield cell, _config(given)


def _epoch(comparison: Comparison, max_macs: int, costs: _Costs) -> Overrides:
    """The settings of an epoch that ends when the host has spent `epoch_share` of the budget."""
    if comparison.epoch_share is None:
        return ()
    steps = math.ceil(comparison.epoch_share * max_macs / (costs.host * costs.batch_size))
    warmup_epochs = _WARMUP_STEPS / steps
    return f"dataset.epoch_windows={steps * costs.batch_size}", f"optimization.warmup_epochs={warmup_epochs:.9f}"


def _with_seed(arms: Sequence[tuple[Cell, TolariaConfig]], seed: int) -> Iterator[Cell]:
    trunk: Path | None = None
    for cell, config in arms:
        overrides, after = (*cell.overrides, f"rng_seed={seed}"), None
        if config.model.init_from is not None:
            assert trunk is not None, "the trunk is the first arm"
            after = trunk
            start = f"model.init_from={trunk}/checkpoints/trunk"
            overrides = tuple(start if one == FROM_TRUNK else one for one in overrides)
        # Neither where the data lies nor where the outputs go makes another run.
        identity = dataclasses.replace(
            config,
            rng_seed=seed,
            dataset=dataclasses.replace(config.dataset, data_dir=""),
            model=dataclasses.replace(config.model, init_from=after.name if after else None),
            morphogenetic=dataclasses.replace(
                config.morphogenetic, recipe_path=config.morphogenetic.recipe_path and RESNET18_STACKED.name
            ),
        )
        found = digest(identity)
        run_dir = cell.run_dir / f"{cell.study}-{cell.arm}-{cell.budget:g}-{seed}-{found}".translate(_FOR_FOLDERS)
        if cell.arm == TRUNK:
            trunk = run_dir
        yield dataclasses.replace(cell, seed=seed, overrides=overrides, digest=found, run_dir=run_dir, after=after)


_FOR_FOLDERS = str.maketrans({" ": "_", ",": None, "[": None, "]": None, "=": "_"})
