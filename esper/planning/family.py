"""The trainings that a plan chooses between: one host, recipe and dataset, and what the host grows into."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from esper.build import Parts, parts
from esper.configs import TolariaConfig
from esper.configs.compose import compose
from esper.configs.identity import family, outputs_folder
from esper.configs.load import from_hydra
from esper.contracts.metrics import MetricInfo
from esper.contracts.recipe import Graft, part_of
from esper.costs import Cost, count, training_macs
from esper.data import Fingerprint
from esper.errors import ConfigError, SurgeryError
from esper.kasmina import MorphableModel
from esper.kasmina.copies import copy_sources
from esper.planning.observations import Size
from esper.tracking.files import write_recipe

__all__ = ["Family", "Network", "read_family", "require_plannable"]

_COPY = "copy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network that may be trained from scratch.

    Attributes:
        size: how plans call it, and its cost.
        fraction: of what grows that it has: 0 the host, 1 the final network.
        num_macs: MACs of a forward pass of one example.
    """

    size: Size
    fraction: float
    num_macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One host, recipe and dataset.

    Attributes:
        config: the configuration that grows.
        folder: the experiment's folder, which holds the runs.
        digest: see `configs.identity.family`.
        data: what the dataset holds.
        networks: by size; the first is the host, the last the final network.
        recipe: what the host grows.
        steps_per_epoch: optimizer steps in an epoch.
        headline: the task's first metric.
        num_val: examples that validation reads.
    """

    config: TolariaConfig
    folder: Path
    digest: str
    data: Fingerprint
    networks: tuple[Network, ...]
    recipe: tuple[Graft, ...]
    steps_per_epoch: int
    headline: MetricInfo
    num_val: int

    @property
    def share(self) -> float:
        """Of the compute at which the configuration grows."""
        return self.config.morphogenetic.schedule_at[0]

    @property
    def host(self) -> Network:
        """The smallest network."""
        return self.networks[0]

    @property
    def final(self) -> Network:
        """The network that the host grows into."""
        return self.networks[-1]

    def network(self, name: str) -> Network:
        """The network of a size."""
        return next(network for network in self.networks if network.size.name == name)

    @property
    def recipe_path(self) -> Path:
        """Where `write_recipe` puts the recipe; one that differs has another name."""
        content = json.dumps([graft.entry() for graft in self.recipe])
        return self.folder / f"final-{hashlib.sha256(content.encode()).hexdigest()[:8]}.json"

    def write_recipe(self) -> None:
        """Write the recipe of the final network, which runs of it read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_recipe(self.recipe_path, self.recipe, host=self.config.model.name)


def read_family(overrides: Sequence[str], *, fractions: Sequence[float] | None) -> Family:
    """Build the networks of a configuration that grows, and count them; nothing is trained.

    Args:
        overrides: as for `esper-train`.
        fractions: of what grows, for the sizes in between; None: half, if there is such a network.

    Raises:
        ConfigError: the configuration does not grow once by copies, or no size lies in between.
        DataError: the data cannot be used.
    """
    cfg = compose(overrides)
    config, run_dir = from_hydra(cfg), Path(cfg.hydra.run.dir)
    require_plannable(config)
    outputs = outputs_folder(run_dir.absolute(), experiment_name=config.experiment_name)
    built = parts(config, cache_dir=outputs / "cache", device=torch.device("cpu"))
    try:
        recipe = _recipe(config, built.model)
        return Family(
            config=config,
            folder=run_dir.parent,
            digest=family(dataclasses.asdict(config)),
            data=built.splits.fingerprint,
            networks=tuple(_networks(built, recipe, fractions)),
            recipe=tuple(recipe),
            steps_per_epoch=built.loader.num_batches,
            headline=built.task.metrics[0].info,
            num_val=len(built.splits.controller),
        )
    finally:
        built.close()


def require_plannable(config: TolariaConfig) -> None:
    """Check that a configuration grows once, by copies, and that its runs can branch from one trunk.

    Raises:
        ConfigError: it does not.
    """
    growth, recipe = config.morphogenetic, config.optimization
    wrong = {
        "morphogenetic.enable_tamiyo=false: nothing grows, so there is nothing to plan; add morphogenetic=stack":
            not growth.enable_tamiyo,
        f"morphogenetic.policy={growth.policy}: esper plan needs to know what will grow; add morphogenetic=stack":
            growth.policy != "stack",
        f"morphogenetic.schedule_at={growth.schedule_at}: esper plan plans one growth; give one share of the compute":
            len(growth.schedule_at) != 1,
        f"morphogenetic.growth_until={growth.growth_until:g}: growth is at the end of an epoch, some time after "
        f"schedule_at={growth.schedule_at}; give a later one":
            max(growth.schedule_at, default=0.0) >= growth.growth_until,
        f"morphogenetic.max_added_macs={growth.max_added_macs}: what will grow is not known; leave it null":
            growth.max_added_macs is not None,
        f"morphogenetic.max_added_parameters={growth.max_added_parameters}: what will grow is not known; leave it null":
            growth.max_added_parameters is not None,
        f"optimization.scheduler={recipe.scheduler}: pilots branch where the learning rate is constant; use wsd":
            recipe.scheduler != "wsd",
        f"optimization.patience={recipe.patience}: early stopping breaks equal budgets; set it to null":
            recipe.patience is not None,
        f"model.init_from={config.model.init_from}: esper plan plans trainings from scratch; for a trained network, "
        "compare with experiment=more_capacity": config.model.init_from is not None,
        f"comparison.arm={config.comparison.arm}: esper plan chooses what to train itself; leave arm= out":
            config.comparison.arm is not None,
        "fresh=true: esper plan goes on with the pilots that are there; for new ones, give another --experiment":
            config.fresh,
    }  # fmt: skip
    if problem := next((message for message, is_so in wrong.items() if is_so), None):
        raise ConfigError(problem)


def _recipe(config: TolariaConfig, model: MorphableModel) -> list[Graft]:
    """What `policy=stack` grows at its first doubling."""
    recipe: list[Graft] = []
    for slot in model.all_slots():
        with contextlib.suppress(SurgeryError):  # nothing is copied to this site
            sources = copy_sources(model, slot, config.morphogenetic.copy_order)
            recipe.append(
                Graft(
                    graft_id=len(recipe) + 1, site=slot.site.name, blueprint_id=_COPY, init_seed=0, init_gain=1.0,
                    born_step=0, sources=sources, copy_init=config.morphogenetic.copy_init,
                )
            )  # fmt: skip
    return recipe


def _networks(built: Parts, recipe: Sequence[Graft], fractions: Sequence[float] | None) -> list[Network]:
    """The host, what lies in between, and the final network."""
    block_costs = {slot.site.block: slot.site.block_cost for slot in built.model.all_slots()}
    host = count(built.model.host, built.spec.inputs, dtype=built.spec.dtype)
    skipped, found = built.model.skipped_macs(), dict[Cost, float]()
    for fraction in (0.0, *sorted(fractions if fractions is not None else [0.5]), 1.0):
        grafts = recipe if fraction == 1 else _part(recipe, fraction)
        cost = sum((block_costs[source] for graft in grafts for source in graft.sources), host)
        if found.setdefault(cost, fraction) != fraction and fractions is not None:
            raise ConfigError(f"--sizes={fraction:g}: no other network lies there; leave it out")
    num_examples = built.loader.num_batches * built.loader.batch_size
    return [
        Network(
            fraction=fraction,
            num_macs=cost.num_macs,
            size=Size(
                **_names(fraction, is_alone=len(found) == 3),
                macs_per_epoch=training_macs(num_examples, cost.num_macs, skipped=skipped),
                num_parameters=cost.num_parameters,
            ),
        )
        for cost, fraction in found.items()
    ]


def _part(recipe: Sequence[Graft], fraction: float) -> list[Graft]:
    with contextlib.suppress(ConfigError):  # too little grows
        return part_of(recipe, fraction, num_macs=[0] * len(recipe))
    return []


def _names(fraction: float, *, is_alone: bool) -> dict[str, str]:
    if fraction in (0, 1):
        return {"name": "final", "label": "final size"} if fraction else {"name": "host", "label": "host"}
    if is_alone:
        return {"name": "between", "label": "a size in between"}
    return {"name": f"between_{fraction:g}", "label": f"host and {100 * fraction:.0f} % of what grows"}
