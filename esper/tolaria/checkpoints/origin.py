"""What a checkpoint of another run was trained on, and where a run goes on from it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esper.configs.identity import digest
from esper.contracts.lifecycle import LIVE
from esper.contracts.recipe import Graft
from esper.data import DataSplits, Fingerprint
from esper.errors import ConfigError, RunError
from esper.tolaria.checkpoints.files import Snapshot
from esper.tolaria.data_record import described, recorded_data
from esper.tolaria.run import Run
from esper.tolaria.run_folder import recorded_config
from esper.tolaria.state import TrainingState

__all__ = ["Origin", "home_of", "place", "read_origin", "split_settings"]

_SPLIT_SETTINGS = ("rng_seed", "dataset.val_split", "dataset.num_examples")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The training that a network comes from.

    Attributes:
        dataset: name of its dataset.
        batch_size: images in a step.
        split: settings that decide which images were trained on, by name.
        data: what the dataset held; None: not recorded.
    """

    dataset: str
    batch_size: int
    split: Mapping[str, Any]
    data: Fingerprint | None

    def changed_data(self, splits: DataSplits, *, dataset: str) -> str:
        """How the data that a training depends on differs; "" if it does not, as far as is recorded."""
        if self.data is not None:
            return "" if self.data.trains_like(splits.fingerprint) else described(self.data.changes(splits.fingerprint))
        return "" if self.dataset == dataset else f"{self.dataset} → {dataset}"

    def train_indices(self, splits: DataSplits) -> Tensor:
        """Which of the same images were trained on."""
        return splits.train_indices(**{name.rpartition(".")[2]: value for name, value in self.split.items()})

    def num_leaked(self, splits: DataSplits) -> int:
        """How many of the images that are held out here were trained on, if the data is the same."""
        return int(torch.isin(splits.held_out, self.train_indices(splits)).sum())

    def changed_split(self, settings: Mapping[str, Any]) -> str:
        """The settings that draw another split, here and there."""
        return ", ".join(f"{k} {_text(v)} → {_text(settings[k])}" for k, v in self.split.items() if v != settings[k])

    def same_split(self, settings: Mapping[str, Any]) -> str:
        """The overrides that draw the same split."""
        return " ".join(f"{name}={_text(value)}" for name, value in self.split.items() if value != settings[name])


def split_settings(run: Run) -> dict[str, Any]:
    """The settings of a run that decide which images it trains on, by name."""
    dataset = run.config.dataset
    return dict(zip(_SPLIT_SETTINGS, (run.config.rng_seed, dataset.val_split, dataset.num_examples), strict=True))


def home_of(checkpoint: Path) -> Path:
    """The folder with the `config.yaml` of a checkpoint's run, if there is one."""
    folder = checkpoint.absolute().parent
    if folder.name == "abandoned":
        folder = folder.parent
    return folder if (folder / "config.yaml").exists() else folder.parent  # `checkpoints` of the run folder


def read_origin(folder: Path) -> Origin | None:
    """What a run folder, or one with checkpoints of a run, says of it; None if it says nothing."""
    try:
        settings = recorded_config(folder)
        if settings is None:
            return None
        dataset = settings["dataset"]
        split = (settings["rng_seed"], dataset["val_split"], dataset["num_examples"])
        return Origin(
            dataset=dataset["name"],
            batch_size=dataset["batch_size"],
            split=dict(zip(_SPLIT_SETTINGS, split, strict=True)),
            data=recorded_data(folder),
        )
    except (RunError, KeyError, TypeError):
        return None


def place(run: Run, path: Path, saved: Snapshot) -> tuple[Snapshot, list[str]]:
    """Where a run goes on from a checkpoint of another run: after as many epochs; and what the user should know.

    Raises:
        ConfigError: images that are held out here were trained on there; the data is other; the checkpoint is within an
            epoch that has other steps here; or it is further than this run goes.
    """
    where, otherwise = f"checkpoint.resume_from={path}", f"or take its weights alone: model.init_from={path}"
    splits, settings = run.parts.splits, split_settings(run)
    origin = read_origin(home_of(path))
    if origin is None:
        if saved.digest == digest(run.config):
            return saved, []
        raise ConfigError(
            f"{where}: its settings differ, and which is not known, as {home_of(path)} has no config.yaml; give the "
            f"checkpoint in its run's folder, {otherwise}"
        )
    if changed := origin.changed_data(splits, dataset=run.config.dataset.name):
        raise ConfigError(f"{where}: was trained on other data: {changed}; restore that, {otherwise}")
    if leaked := origin.num_leaked(splits):
        raise ConfigError(
            f"{where}: was trained on {leaked} of the {len(splits.held_out)} images that are held out here "
            f"({origin.changed_split(settings)}); give {origin.same_split(settings)}, {otherwise}"
        )
    notices = [f"whether {path} was trained on the same data is not known: it recorded none"] * (origin.data is None)
    num_images, batch_size = len(origin.train_indices(splits)), run.config.dataset.batch_size
    placed = saved
    if (num_images, origin.batch_size) != (len(splits.train), batch_size):
        batches = (
            f"{num_images} images in batches of {origin.batch_size} → {len(splits.train)} in batches of {batch_size}"
        )
        placed = _after_epochs(run, saved, f"{where} ({batches})", otherwise)
        notices.append(f"goes on after epoch {placed.state['training']['epoch']}, at step {placed.step} ({batches})")
    _require_within_budget(run, placed, where, otherwise)
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


def _require_within_budget(run: Run, saved: Snapshot, where: str, otherwise: str) -> None:
    state, budget, optimization = TrainingState(), run.life.budget, run.config.optimization
    state.load_state_dict(saved.state["training"])
    if 2 * (budget.spent(state) - budget.total) <= budget.cost_of(1, run.life.running_macs):
        return
    total = f"optimization.max_epochs={optimization.max_epochs}"
    if optimization.max_macs is not None:
        total = f"optimization.max_macs={optimization.max_macs:.3g}"
    done = f"{state.ledger.total_macs:.3g} MACs are spent" if budget.by_compute else f"{state.epoch} epochs are done"
    raise ConfigError(f"{where}: {done}, more than {total}; set more, {otherwise}")


def _text(value: Any) -> str:
    return "null" if value is None else f"{value}"
