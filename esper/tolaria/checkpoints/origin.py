"""What a checkpoint of another run was trained on, and where a run goes on from it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esper.configs import DatasetConfig
from esper.configs.identity import digest
from esper.contracts.lifecycle import LIVE
from esper.contracts.recipe import Graft
from esper.data import DataSplits, Fingerprint, TokenSet
from esper.errors import CheckpointError, ConfigError, RunError
from esper.tolaria.checkpoints.files import Snapshot
from esper.tolaria.data_record import described, recorded_data
from esper.tolaria.run import Run
from esper.tolaria.run_folder import recorded_config

__all__ = [
    "Origin",
    "as_given",
    "fitting",
    "home_of",
    "place",
    "read_origin",
    "require_within_budget",
    "split_settings",
]

_SPLIT_SETTINGS = ("dataset.split_seed", "dataset.val_split", "dataset.num_examples")
_EPOCH_SETTINGS = ("context", "epoch_windows")
_TEXT_SETTINGS = ("document_separator", "split_by", "test_split")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The training that a network comes from.

    Attributes:
        dataset: name of its dataset.
        batch_size: examples in a step.
        epoch: settings that decide how long an epoch of text is, by name.
        split: settings that decide which images or documents were trained on, by name.
        text: settings that decide what a document is and which are in the test split, by name.
        data: what the dataset held; None: not recorded.
    """

    dataset: str
    batch_size: int
    epoch: Mapping[str, Any]
    split: Mapping[str, Any]
    text: Mapping[str, Any]
    data: Fingerprint | None

    def changed_data(self, splits: DataSplits, dataset: DatasetConfig) -> str:
        """How the data that a training depends on differs; "" if it does not, as far as is recorded."""
        if isinstance(splits.train, TokenSet):
            now = _settings(dataclasses.asdict(dataset), _TEXT_SETTINGS)
            if changed := [f"{k} {as_given(v)} → {as_given(now[k])}" for k, v in self.text.items() if v != now[k]]:
                return ", ".join(changed)
        if self.data is not None:
            return "" if self.data.trains_like(splits.fingerprint) else described(self.data.changes(splits.fingerprint))
        return "" if self.dataset == dataset.name else f"{self.dataset} → {dataset.name}"

    def train_indices(self, splits: DataSplits) -> Tensor:
        """Which of the same images were trained on."""
        return splits.train_indices(**{name.rpartition(".")[2]: value for name, value in self.split.items()})

    def steps_in_epoch(self, splits: DataSplits, noun: str = "") -> str:
        """What decides how many steps an epoch of the same data had, in words."""
        steps = f"{len(self.train_indices(splits))} {noun} in batches of {self.batch_size}".replace("  ", " ")
        if not isinstance(splits.train, TokenSet):
            return steps
        return ", ".join([steps, *(f"{name}={as_given(value)}" for name, value in self.epoch.items())])

    def num_leaked(self, splits: DataSplits) -> int:
        """How many of the images that are held out here were trained on, if the data is the same."""
        return int(torch.isin(splits.held_out, self.train_indices(splits)).sum())

    def changed_split(self, settings: Mapping[str, Any]) -> str:
        """The settings that draw another split, here and there."""
        return ", ".join(
            f"{k} {as_given(v)} → {as_given(settings[k])}" for k, v in self.split.items() if v != settings[k]
        )

    def same_split(self, settings: Mapping[str, Any]) -> str:
        """The overrides that draw the same split."""
        return " ".join(f"{name}={as_given(value)}" for name, value in self.split.items() if value != settings[name])


def split_settings(run: Run) -> dict[str, Any]:
    """The settings of a run that decide which images it trains on, by name."""
    return _split_settings(dataclasses.asdict(run.config.dataset), rng_seed=run.config.rng_seed)


def _split_settings(dataset: Mapping[str, Any], *, rng_seed: int) -> dict[str, Any]:
    split_seed = dataset.get("split_seed")  # older versions had none
    seed = rng_seed if split_seed is None else split_seed
    return dict(zip(_SPLIT_SETTINGS, (seed, dataset["val_split"], dataset["num_examples"]), strict=True))


def home_of(checkpoint: Path) -> Path:
    """The folder with the `config.yaml` of a checkpoint's run, if there is one."""
    folder = checkpoint.absolute().parent
    if folder.name == "abandoned":
        folder = folder.parent
    return folder if (folder / "config.yaml").exists() else folder.parent  # `checkpoints` of the run folder


def read_origin(folder: Path) -> Origin | None:
    """What a run folder, or one with checkpoints of a run, says of it; None if it says nothing.

    Raises:
        RunError: its `config.yaml` or `data.json` is damaged.
    """
    settings = recorded_config(folder)
    if settings is None:
        return None
    data = recorded_data(folder)
    try:
        dataset = settings["dataset"]
        return Origin(
            dataset=dataset["name"],
            batch_size=dataset["batch_size"],
            epoch=_settings(dataset, _EPOCH_SETTINGS),
            split=_split_settings(dataset, rng_seed=settings["rng_seed"]),
            text=_settings(dataset, _TEXT_SETTINGS),
            data=data,
        )
    except (KeyError, TypeError):
        return None


def place(run: Run, path: Path, saved: Snapshot) -> tuple[Snapshot, list[str]]:
    """Where a run goes on from a checkpoint of another run: after as many epochs; and what the user should know.

    Raises:
        ConfigError: images that are held out here were trained on there; the data is other; the checkpoint is within an
            epoch that has other steps here.
    """
    where, otherwise = _words(path)
    splits, settings = run.parts.splits, split_settings(run)
    try:
        origin = read_origin(home_of(path))
    except RunError as error:
        if saved.digest == digest(run.config):
            return saved, []
        raise ConfigError(f"{where}: {error}") from None
    if origin is None:
        if saved.digest == digest(run.config):
            return saved, []
        raise ConfigError(
            f"{where}: its settings differ, and which is not known, as {home_of(path)} has no config.yaml; give the "
            f"checkpoint in its run's folder, {otherwise}"
        )
    if changed := origin.changed_data(splits, run.config.dataset):
        raise ConfigError(f"{where}: was trained on other data: {changed}; restore that, {otherwise}")
    if leaked := origin.num_leaked(splits):
        raise ConfigError(
            f"{where}: was trained on {leaked} of the {len(splits.held_out)} {splits.noun} that are held out here "
            f"({origin.changed_split(settings)}); give {origin.same_split(settings)}, {otherwise}"
        )
    notices = [f"whether {path} was trained on the same data is not known: it recorded none"] * (origin.data is None)
    placed = saved
    here = dataclasses.replace(
        origin,
        split=settings,
        batch_size=run.config.dataset.batch_size,
        epoch=_settings(dataclasses.asdict(run.config.dataset), _EPOCH_SETTINGS),
    )
    if origin.steps_in_epoch(splits) != here.steps_in_epoch(splits):
        batches = f"{origin.steps_in_epoch(splits, splits.noun)} → {here.steps_in_epoch(splits)}"
        placed = _after_epochs(run, saved, f"{where} ({batches})", otherwise)
        notices.append(f"goes on after epoch {placed.state['training']['epoch']}, at step {placed.step} ({batches})")
    return placed, notices


def _after_epochs(run: Run, saved: Snapshot, where: str, otherwise: str) -> Snapshot:
    """The snapshot with the number of steps that its epochs have here."""
    training = saved.state["training"]
    if training["step"]:
        raise ConfigError(
            f"{where}: was saved after step {training['step']} of an epoch, which has other steps here; take a "
            f"checkpoint of an epoch's end, {otherwise}"
        )
    if live := [site for site, slot in saved.state["growth"]["slots"].items() if slot["state"] in LIVE]:
        raise ConfigError(
            f"{where}: the module at {live[0]} was neither kept nor culled yet, and its steps would count differently "
            f"here; take a later or earlier checkpoint, {otherwise}"
        )
    step = training["epoch"] * run.steps_per_epoch
    added, state = step - saved.step, copy.deepcopy(dict(saved.state))
    state["training"]["global_step"] = step
    state["average"] = {name: born + added for name, born in state.get("average", {}).items()}
    # A module of step 0 trains like the host.
    recipe = [_moved(graft, added) if graft.born_step else graft for graft in saved.recipe]
    return dataclasses.replace(saved, step=step, state=state, recipe=recipe)


def _moved(graft: Graft, added: int) -> Graft:
    return dataclasses.replace(graft, born_step=max(1, graft.born_step + added))


def require_within_budget(run: Run, path: Path) -> None:
    """Check that a run, which holds what another run's checkpoint did, goes further than that.

    Raises:
        ConfigError: it does not.
    """
    # Not before: the budget depends on the network that the run starts with.
    state, budget, optimization = run.state, run.life.budget, run.config.optimization
    where, otherwise = _words(path)
    if 2 * (budget.spent(state) - budget.total) <= budget.cost_of(1, run.life.image_macs):
        return
    total = f"optimization.max_epochs={optimization.max_epochs}"
    if optimization.max_macs is not None:
        total = f"optimization.max_macs={optimization.max_macs:.3g}"
    done = f"{state.ledger.total_macs:.3g} MACs are spent" if budget.by_compute else f"{state.epoch} epochs are done"
    raise ConfigError(f"{where}: {done}, more than {total}; set more, {otherwise}")


@contextlib.contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Context manager for restoring a checkpoint of another run, whose network or optimizer may be another.

    Raises:
        ConfigError: instead of a `CheckpointError`.
    """
    try:
        yield
    except CheckpointError as error:
        where, otherwise = _words(path)
        settings = home_of(path) / "config.yaml"
        raise ConfigError(f"{where}: {error}; give its run's settings ({settings}), {otherwise}") from None


def _words(path: Path) -> tuple[str, str]:
    """The setting that names a checkpoint, and what else it could be used for."""
    return f"checkpoint.resume_from={path}", f"or take its weights alone: model.init_from={path}"


def _settings(dataset: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Some settings of a dataset, of which older versions lack some."""
    known = dataclasses.asdict(DatasetConfig())
    return {f"dataset.{name}": dataset.get(name, known[name]) for name in names}


def as_given(value: Any) -> str:
    """The value of a setting as on a command line."""
    if value is None:
        return "null"
    return str(value).replace(" ", "") if isinstance(value, list) else str(value)
