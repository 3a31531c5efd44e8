"""Build the parts of a run from a validated configuration."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from esper import urza
from esper.configs import DatasetConfig, ModelConfig, MorphogeneticConfig, RedisConfig, TolariaConfig, torch_seed
from esper.configs.model import SITE_KINDS
from esper.contracts.recipe import Graft
from esper.data import (
    DataSpec,
    DataSplits,
    DecodePool,
    ImageSet,
    Loader,
    Mixer,
    Preprocess,
    Split,
    StreamLoader,
    TokenLoader,
    TokenSet,
    TrainLoader,
    evaluation_batches,
    load_splits,
)
from esper.data.interface import Interface, interface_of
from esper.devices import fork_rng, select_device
from esper.errors import ConfigError, one_line
from esper.kasmina import MorphableModel, Site, find_blocks, find_sites, wrap
from esper.kasmina.copyable import require_copyable
from esper.kasmina.modes import evaluating
from esper.models import build_host, checkpoint_blocks, freeze, memory_format, registered
from esper.tamiyo import LocalTamiyo, TamiyoClient
from esper.tasks import Task, build_task, mean_values
from esper.tracking import Tracker
from esper.tracking.files import read_recipe

__all__ = ["Parts", "bus_tracker", "parts"]

_NO_LIMIT = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a training; everything but image files is on `device`."""

    device: torch.device
    splits: DataSplits
    spec: DataSpec
    task: Task
    prepare: Preprocess
    pool: DecodePool
    loader: Loader
    model: MorphableModel
    tamiyo: TamiyoClient
    config: TolariaConfig

    def evaluation_batches(self, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        """A new pass over a split, without augmentation, in batches of 512 examples, or fewer if they are large."""
        return evaluation_batches(split, self.spec, prepare=self.prepare, pool=self.pool, device=self.device)

    @property
    def interface(self) -> Interface:
        """What the network reads and gives."""
        return interface_of(self.splits, self.spec, self.config.dataset, task=self.config.task.name)

    def close(self) -> None:
        """Stop the decoding processes and disconnect from Tamiyo; safe to call twice."""
        self.pool.close()
        self.tamiyo.close()


def parts(
    config: TolariaConfig,
    *,
    cache_dir: Path,
    run_id: str = "",
    device: torch.device | None = None,
    rows: slice = slice(None),
) -> Parts:
    """Load the data, build the host and make it morphable.

    Initial weights, splits, shuffle order and augmentation depend on `rng_seed` alone.

    Args:
        config: what to build.
        cache_dir: where decoded image folders are cached.
        run_id: name of the run on the bus.
        device: None: the configured one.
        rows: this rank's rows of a batch.

    Raises:
        ConfigError: the device or a layer does not exist.
        DataError: the data cannot be used.
    """
    device = device or select_device(config.device)
    splits = load_splits(config.dataset, rng_seed=config.rng_seed, cache_dir=cache_dir).to(device)
    _require_targets(config, splits)
    _require_images(config.dataset, splits)
    torch.manual_seed(torch_seed(config.rng_seed))
    spec = _spec(config, splits)
    host = build_host(config.model, spec).to(device)
    task = build_task(config.task, spec, device)
    if config.model.source == "plugin":
        _require_output(host, task, splits, spec, name=config.model.name)
    model = _build_model(config, host, spec, device)
    train = splits.train
    prepare = Preprocess(
        mean=splits.mean,
        std=splits.std,
        # Of floating-point values, mean and std already obey `normalize`.
        normalize=config.dataset.normalize or (isinstance(train, ImageSet) and train.stored.is_floating_point()),
        channels_last=model.memory_format is torch.channels_last,
        device=device,
    )
    pool = DecodePool(
        config.dataset.num_workers, timeout_s=config.dataset.timeout_s
    )  # processes start with the first batch
    mixer = None
    if config.dataset.mixup_alpha or config.dataset.cutmix_alpha:
        mixer = Mixer(config.dataset, rng_seed=config.rng_seed, num_classes=spec.num_outputs, device=device)
    loader: Loader
    if isinstance(splits.train, TokenSet):
        loader = TokenLoader(splits.train, config.dataset, rng_seed=config.rng_seed, device=device, rows=rows)
    elif isinstance(splits.train, ImageSet):
        loader = TrainLoader(
            splits.train, config.dataset, rng_seed=config.rng_seed, prepare=prepare, rows=rows, mixer=mixer
        )
    else:
        loader = StreamLoader(
            splits.train,
            config.dataset,
            rng_seed=config.rng_seed,
            prepare=prepare,
            pool=pool,
            device=device,
            rows=rows,
            mixer=mixer,
        )
    return Parts(
        device=device,
        splits=splits,
        spec=spec,
        task=task,
        prepare=prepare,
        pool=pool,
        loader=loader,
        model=model,
        tamiyo=_tamiyo(config, run_id),
        config=config,
    )


def _tamiyo(config: TolariaConfig, run_id: str) -> TamiyoClient:
    if config.morphogenetic.tamiyo == "local" or not config.morphogenetic.enable_tamiyo:
        return LocalTamiyo(config.morphogenetic, rng_seed=config.rng_seed)
    from esper.oona.redis import RedisBus  # lazily: only runs with a bus need the Redis client
    from esper.tamiyo.remote import SharedTamiyo

    def definitions() -> list[str]:
        declared = [urza.get(name).definition for name in config.morphogenetic.library]
        return [definition for definition in declared if definition is not None]

    # The deadline also limits the wait for the Redis server.
    timeout_s = min(config.redis.timeout_s, config.morphogenetic.tamiyo_deadline_s)
    return SharedTamiyo(
        RedisBus(dataclasses.replace(config.redis, timeout_s=timeout_s)),
        run_id=run_id,
        config=config.morphogenetic,
        rng_seed=config.rng_seed,
        definitions=definitions,
    )


def bus_tracker(config: RedisConfig, *, run_dir: Path) -> Tracker:
    """The bus as a tracker of a run, beside MLflow and W&B."""
    from esper.oona.publish import RunPublisher  # lazily: only runs with a bus need the Redis client
    from esper.oona.redis import RedisBus, address

    return Tracker(
        name="Redis", place=address(config), open=lambda: RunPublisher(RedisBus(config), run_dir=run_dir.absolute())
    )


def _require_targets(config: TolariaConfig, splits: DataSplits) -> None:
    """Refuse numbers where the task learns classes, classes where it learns numbers, and labels that are not binary."""
    if isinstance(splits.train, TokenSet):
        return
    are_numbers = splits.train.labels.is_floating_point()
    if config.task.name == "classification" and are_numbers:
        kind, other = "numbers", "task=regression or multilabel, or give classes: whole numbers from 0 on"
    elif config.task.name in ("regression", "multilabel") and not are_numbers:
        kind, other = "classes", "task=classification, or give numbers: targets in floating point"
    else:
        if config.task.name == "multilabel":
            _require_binary(splits, config.dataset.name)
        return
    hint = f" (dataset.target_type={config.dataset.target_type})" if config.dataset.name == "arrays" else ""
    raise ConfigError(
        f"task={config.task.name}: the targets of dataset {config.dataset.name} are {kind}{hint}; use {other}"
    )


def _require_binary(splits: DataSplits, name: str) -> None:
    """Refuse labels other than 0 and 1."""
    for split in (splits.train, splits.controller, splits.judge, splits.test):
        assert not isinstance(split, TokenSet)
        wrong = split.labels[(split.labels != 0) & (split.labels != 1)]
        if wrong.numel():
            raise ConfigError(
                f"task=multilabel: the targets of dataset {name} hold {wrong[0]:g}; give 1 where a label applies and 0 "
                "elsewhere, or use task=regression"
            )


def _require_output(host: nn.Module, task: Task, splits: DataSplits, spec: DataSpec, *, name: str) -> None:
    """Refuse a network that does not take the data, or whose output is not what the task learns from."""
    train, device = splits.train, next(host.parameters()).device
    with evaluating(host), fork_rng(device):
        output = registered.try_out(host, name, spec)
    if isinstance(train, TokenSet):
        targets = torch.zeros(2, *spec.inputs, dtype=spec.dtype, device=device)
    else:
        targets = train.labels[[0, 0]].to(device)
    try:
        task.objective(output, targets)
        is_measured = len(task.losses(output, targets)) == len(targets)
        mean_values(task.metrics, output, targets)
    except ConfigError:
        raise
    except Exception as error:  # any, of a plugin's task
        problem = one_line(error)
    else:
        problem = "" if is_measured else "there is not one loss an example"
    if problem:
        raise ConfigError(
            f"model.name={name}: gives {tuple(output.shape)} for 2 examples, from which task={task.name} cannot learn "
            f"targets {tuple(targets.shape)}: {problem}"
        )


def _require_images(config: DatasetConfig, splits: DataSplits) -> None:
    """Refuse augmentations that do not fit; whether a plugin's data are images is known once they are read."""
    for name in ("mixup_alpha", "cutmix_alpha", "random_erasing", "rand_augment_num_ops"):
        if (value := getattr(config, name)) and len(splits.spec.inputs) != 3:
            raise ConfigError(
                f"dataset.{name}={value}: is for images, but the inputs of dataset {config.name} have the shape "
                f"{splits.spec.inputs}; leave it 0"
            )
    train = splits.train
    is_float = isinstance(train, ImageSet) and train.stored.is_floating_point()
    if config.rand_augment_num_ops and (is_float or splits.spec.inputs[0] not in (1, 3)):
        raise ConfigError(
            f"dataset.rand_augment_num_ops={config.rand_augment_num_ops}: is for uint8 images of 1 or 3 channels, but "
            f"those of dataset {config.name} have {'floating-point values' if is_float else splits.spec.inputs[0]}"
            f"{'' if is_float else ' channels'}; leave it 0"
        )


def _spec(config: TolariaConfig, splits: DataSplits) -> DataSpec:
    if config.model.num_classes is None:
        return splits.spec
    num_found = splits.spec.num_outputs
    if config.model.num_classes < num_found:
        raise ConfigError(
            f"model.num_classes={config.model.num_classes}: {config.dataset.name} has {num_found} classes; set it to "
            "null"
        )
    return dataclasses.replace(splits.spec, num_outputs=config.model.num_classes)


def _build_model(config: TolariaConfig, host: nn.Module, spec: DataSpec, device: torch.device) -> MorphableModel:
    if config.morphogenetic.enable_tamiyo and config.morphogenetic.policy == "planned":
        raise ConfigError("morphogenetic.policy=planned: the plan is read at launch; use esper-train or esper.fit")
    host = host.to(memory_format=memory_format(host, channels_last=config.channels_last, device=device))
    constants = {name for name, p in host.named_parameters(remove_duplicate=False) if not p.requires_grad}
    freeze(host, config.model.freeze)
    grows = config.morphogenetic.enable_tamiyo
    if grows and config.morphogenetic.policy == "replay":
        model = _wrap_for_replay(config, host, spec)
    else:
        model = wrap(
            host,
            config.model.target_layers if grows else [],
            config.model.seeds_per_layer,
            input_shape=spec.inputs,
            input_dtype=spec.dtype,
            max_kernels_per_seed=config.model.max_kernels_per_seed,
            site_kinds=config.model.site_kinds,
        )
    model.build_host = functools.partial(build_host, dataclasses.replace(config.model, pretrained=False), spec=spec)
    model.constants = constants
    if config.model.init_from is not None:
        model.all_sites = _all_sites(config, host, spec)
    if grows and config.morphogenetic.policy not in ("never", "replay"):
        _require_blueprints(config.morphogenetic, model)
        if config.morphogenetic.grows_copies:
            require_copyable(model, host=config.model, growth=config.morphogenetic)
    if config.model.gradient_checkpointing:
        checkpoint_blocks([host.get_submodule(name) for name in find_blocks(host, config.model.target_layers)])
    return model


def _all_sites(config: TolariaConfig, host: nn.Module, spec: DataSpec) -> dict[str, Site]:
    """Sites of every kind, without limits: the network in `model.init_from` may have grown anywhere."""
    try:
        sites = find_sites(
            host,
            target_layers=config.model.target_layers,
            seeds_per_layer=_NO_LIMIT,
            input_shape=spec.inputs,
            input_dtype=spec.dtype,
            kinds=SITE_KINDS,
        )
    except ConfigError:
        return {}  # without growth, no layer needs a name; with it, `wrap` has found them
    return {site.name: site for site in sites}


def _wrap_for_replay(config: TolariaConfig, host: nn.Module, spec: DataSpec) -> MorphableModel:
    """Wrap with sites of every kind, without limits: the recipe determines what grows where."""
    path = Path(config.morphogenetic.recipe_path or "")
    recipe = read_recipe(path.expanduser())
    model = wrap(
        host,
        config.model.target_layers,
        _NO_LIMIT,
        input_shape=spec.inputs,
        input_dtype=spec.dtype,
        max_kernels_per_seed=_NO_LIMIT,
        site_kinds=SITE_KINDS,
    )
    sites = {slot.site.name for slot in model.all_slots()}
    if missing := [graft.site for graft in recipe if graft.site not in sites]:
        raise ConfigError(
            f"morphogenetic.recipe_path={path}: it has a module at {missing[0]}, a site that this network lacks; use "
            "the model settings of the recorded run"
        )
    require_recomputable(recipe, config.model, f"the recipe {path}")
    return model


def require_recomputable(recipe: Iterable[Graft], host: ModelConfig, where: str) -> None:
    """Refuse gradient checkpointing of blocks with modules inside.

    Args:
        recipe: what has grown.
        host: settings of the host.
        where: what holds the recipe, for the message.

    Raises:
        ConfigError: blocks run twice, so such a module would count every batch twice.
    """
    inside = [graft.site for graft in recipe if graft.site.endswith((":parallel", ":width"))]
    if host.gradient_checkpointing and inside:
        raise ConfigError(
            f"model.gradient_checkpointing=true: blocks run twice, so that the module inside a block ({inside[0]}) of "
            f"{where} would count every batch twice; set it to false"
        )


def _require_blueprints(config: MorphogeneticConfig, model: MorphableModel) -> None:
    """Refuse settings under which nothing can ever grow."""
    for site in (slot.site for slot in model.all_slots()):
        if urza.allowed(config, site.kind, site.in_shape, site.out_shape):
            return
    raise ConfigError(
        "morphogenetic: no allowed blueprint fits any site; allow more by blueprint, blueprint_categories, "
        "max_blueprint_complexity or model.site_kinds"
    )
