"""Whether a configuration can be used: each setting by its declaration, then the settings against each other."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from esper.configs.comparison import ARMS
from esper.configs.dataset import DATASETS, DatasetConfig
from esper.configs.explain import kind, nearest
from esper.configs.model import HOSTS, ModelConfig
from esper.configs.redis import parse_redis_url
from esper.configs.schema import Allowed, allowed
from esper.configs.tolaria import TolariaConfig
from esper.errors import ConfigError

__all__ = ["check", "check_group"]


def check(config: TolariaConfig) -> None:
    """Refuse a configuration that cannot be used. Looks at paths, never at devices.

    Raises:
        ConfigError: the first problem: key, value, what is allowed or what to do.
    """
    check_group(config)
    _check_names(config)
    _check_model(config)
    _check_dataset(config)
    _check_length(config)
    _check_arm(config)
    if config.morphogenetic.enable_tamiyo:
        _check_growth(config)
    if config.checkpoint.resume_from is not None and not Path(config.checkpoint.resume_from).is_dir():
        raise ConfigError(
            f"checkpoint.resume_from={config.checkpoint.resume_from}: no such folder; give a checkpoint, such as "
            "outputs/EXPERIMENT/RUN/checkpoints/step-N"
        )


def check_group(group: Any, prefix: str = "") -> None:
    """Refuse a value that its declaration does not allow, in a dataclass of settings whose names follow `prefix`.

    Raises:
        ConfigError: the first problem.
    """
    for key, value, hint, limits in _settings(group, prefix):
        _check_setting(key, value, hint, limits)


def _settings(group: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any, Allowed]]:
    """Dotted name, value, type and declaration of every setting."""
    hints = typing.get_type_hints(type(group))
    for field in dataclasses.fields(group):
        key, value, hint = prefix + field.name, getattr(group, field.name), hints[field.name]
        if not dataclasses.is_dataclass(hint):
            yield key, value, hint, allowed(field)
        elif isinstance(value, typing.cast(type, hint)):
            yield from _settings(value, f"{key}.")
        else:
            raise ConfigError(f"{key}={value!r}: must be {kind(hint)}")


def _check_setting(key: str, value: Any, hint: Any, limits: Allowed) -> None:
    if isinstance(hint, types.UnionType):
        if value is None:
            return
        hint = next(one for one in typing.get_args(hint) if one is not types.NoneType)
    if typing.get_origin(hint) is list:
        if not isinstance(value, list):
            raise ConfigError(f"{key}={value!r}: must be {kind(hint)}")
        for index, item in enumerate(value):
            _check_setting(f"{key}[{index}]", item, typing.get_args(hint)[0], limits)
        return
    if typing.get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{key}={value!r}: must be {kind(hint)}")
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number if hint is float else number and isinstance(value, int) if hint is int else isinstance(value, hint)):
        raise ConfigError(f"{key}={value!r}: must be {kind(hint)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value}: must be finite")
    if not limits.admits(value):
        verb, hint_to_user = ("are", nearest(value, limits.choices)) if limits.choices else ("is", "")
        raise ConfigError(f"{key}={value}: allowed {verb} {limits}{hint_to_user}")


def _check_names(config: TolariaConfig) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", config.experiment_name) or ".." in config.experiment_name:
        raise ConfigError(
            f"experiment_name={config.experiment_name!r}: it names a folder; allowed are up to 64 letters, digits, "
            "'_', '-' and single '.', a letter or digit first"
        )
    # The configuration is written to disk and shown in trackers; the value must not be repeated here either.
    if config.redis.url not in (None, "embedded"):
        parse_redis_url(config.redis.url)
    for key, url, variables in (
        (
            "tracking.uri",
            config.tracking.uri,
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or the database's own variable)",
        ),
        ("database.url", config.database.url, "PGPASSWORD, or write it into ~/.pgpass"),
        ("redis.url", config.redis.url, "ESPER_REDIS_PASSWORD (and ESPER_REDIS_USERNAME), or ESPER_REDIS_URL"),
    ):
        if url is not None and urlsplit(url).password is not None:
            raise ConfigError(
                f"{key} holds a password, which would be written into the run folder; take it out and set {variables}"
            )
    if config.tracking.name in ("wandb", "both") and find_spec("wandb") is None:
        raise ConfigError(
            f"tracking={config.tracking.name}: needs the package wandb, which is not installed; "
            "pip install 'esper-train[wandb]', or use tracking=mlflow"
        )


def _check_model(config: TolariaConfig) -> None:
    model = config.model
    _check_architecture(model)
    if config.morphogenetic.enable_tamiyo and not model.target_layers:
        raise ConfigError("model.target_layers=[]: nothing may grow; name layers, or use morphogenetic=off")
    if config.morphogenetic.enable_tamiyo and not model.site_kinds:
        raise ConfigError("model.site_kinds=[]: nothing may grow; name kinds of site, or use morphogenetic=off")
    if model.gradient_checkpointing and config.compile_model:
        raise ConfigError(
            "model.gradient_checkpointing=true: blocks that run twice cannot be compiled (compile_model=true); leave "
            "one of both out"
        )
    inside = [kind for kind in model.site_kinds if kind in ("parallel", "width")]
    if model.gradient_checkpointing and inside:
        raise ConfigError(
            f"model.gradient_checkpointing=true: with it blocks run twice, and what grows inside them "
            f"({', '.join(inside)} in model.site_kinds) would count every batch twice; leave one of both out"
        )


def _check_architecture(model: ModelConfig) -> None:
    if model.source == "timm":
        if not model.name:
            raise ConfigError("model=timm: which network? Add model.name=NAME, such as model.name=convnext_atto")
        if model.stem != "auto":
            raise ConfigError(f"model.stem={model.stem}: timm's networks keep their own stem; leave it auto")
        return
    if model.name not in HOSTS:
        raise ConfigError(f"model.name={model.name}: allowed are {', '.join(HOSTS)}{nearest(model.name, HOSTS)}")
    if model.pretrained and not HOSTS[model.name].has_pretrained:
        raise ConfigError(f"model.pretrained=true: {model.name} has no pretrained weights; use model=resnet18")
    if model.pretrained and model.stem == "cifar":
        raise ConfigError(
            "model.stem=cifar: the pretrained weights have an imagenet stem; use model.stem=auto or pretrained=false"
        )
    if model.name == "resnet_small" and (not model.widths or len(model.widths) != len(model.depths)):
        raise ConfigError(
            f"model.depths={model.depths}: needs one entry for each of model.widths={model.widths}, at least one"
        )


def _check_dataset(config: TolariaConfig) -> None:
    dataset = config.dataset
    info = DATASETS[dataset.name]
    if info.has_fixed_size and dataset.image_size is not None:
        raise ConfigError(
            f"dataset.image_size={dataset.image_size}: images of {dataset.name} have {info.image_size} pixels; leave "
            "it null"
        )
    size = dataset.image_size or info.image_size
    if dataset.use_augmentation and size is not None and dataset.crop_padding >= size:
        raise ConfigError(f"dataset.crop_padding={dataset.crop_padding}: allowed is below the images' side, {size}")
    if info.has_files:
        _check_folder(dataset)
    elif dataset.storage == "stream":
        raise ConfigError(
            f"dataset.storage=stream: {dataset.name} has no image files and stays in memory; use auto, or "
            "dataset=imagefolder"
        )


def _check_folder(dataset: DatasetConfig) -> None:
    folder = Path(dataset.data_dir).expanduser()
    if not (folder / "train").is_dir() or not ((folder / "val").is_dir() or (folder / "test").is_dir()):
        raise ConfigError(
            f"dataset.data_dir={dataset.data_dir}: needs a folder train/ and a folder val/ or test/, each with one "
            "folder of images a class"
        )
    if dataset.image_size is None:
        if dataset.storage == "stream" or DATASETS[dataset.name].is_streamed:
            raise ConfigError("dataset.image_size=null: needs a size to resize the images to; set it, such as 224")
    elif dataset.canvas_size is not None and dataset.canvas_size < dataset.image_size:
        raise ConfigError(
            f"dataset.canvas_size={dataset.canvas_size}: allowed is at least dataset.image_size={dataset.image_size}, "
            "or null"
        )


def _check_length(config: TolariaConfig) -> None:
    recipe = config.optimization
    if recipe.warmup_epochs >= recipe.max_epochs:
        raise ConfigError(
            f"optimization.warmup_epochs={recipe.warmup_epochs:g}: allowed is below optimization.max_epochs="
            f"{recipe.max_epochs}"
        )


def _check_arm(config: TolariaConfig) -> None:
    arm, growth = config.comparison.arm, config.morphogenetic
    if arm is None:
        return
    if config.optimization.patience is not None:
        raise ConfigError(
            f"optimization.patience={config.optimization.patience}: with early stopping the arms of a comparison get "
            "unequal budgets; leave it null"
        )
    policy = ARMS[arm]
    if policy is None and growth.enable_tamiyo:
        raise ConfigError(
            f"morphogenetic.enable_tamiyo=true: comparison.arm={arm} does not grow; leave it to arm={arm}"
        )
    if policy is not None and not growth.enable_tamiyo:
        raise ConfigError(
            f"morphogenetic.enable_tamiyo=false: comparison.arm={arm} needs growth to compare with; leave out "
            "morphogenetic=off"
        )
    if policy and growth.policy != policy:
        raise ConfigError(
            f"morphogenetic.policy={growth.policy}: comparison.arm={arm} is policy={policy}; give no policy, or one "
            "for arm=grown by morphogenetic=NAME"
        )


def _check_growth(config: TolariaConfig) -> None:
    growth, recipe = config.morphogenetic, config.optimization
    if growth.policy == "never":
        return
    if growth.policy == "replay":
        _check_recipe(config)
        return
    if not growth.blueprint_categories:
        raise ConfigError("morphogenetic.blueprint_categories=[]: nothing may grow; name one, or use policy=never")
    latest = {"wsd": 1 - recipe.decay_fraction, "cosine": 0.5, "linear": 0.5, "constant": 1.0}[recipe.scheduler]
    if growth.growth_until > latest + 1e-9:
        raise ConfigError(
            f"morphogenetic.growth_until={growth.growth_until:g}: with optimization.scheduler={recipe.scheduler} "
            f"allowed is at most {latest:g}: what is grown needs the high learning rate"
        )
    if growth.growth_from >= growth.growth_until:
        raise ConfigError(
            f"morphogenetic.growth_from={growth.growth_from:g}: allowed is below morphogenetic.growth_until="
            f"{growth.growth_until:g}"
        )
    if growth.incubation != "none" and config.autocast_dtype == "float16":
        raise ConfigError(
            f"morphogenetic.incubation={growth.incubation}: its gradients vanish in autocast_dtype=float16; use "
            "bfloat16, or incubation=none"
        )
    if growth.alpha_search and growth.incubation == "none":
        raise ConfigError(
            "morphogenetic.alpha_search=true: there is nothing to search for before a module has been trained; set "
            "morphogenetic.incubation=fit or shadow"
        )
    if growth.plateau_epochs is not None and not growth.growth_from:
        raise ConfigError(
            f"morphogenetic.plateau_epochs={growth.plateau_epochs}: it lets growth begin before "
            "morphogenetic.growth_from, which is 0; set that, or leave plateau_epochs null"
        )
    # The control arms of a comparison share the grown arm's settings, also those that only its policy reads.
    if growth.fork_steps and growth.policy != "heuristic" and config.comparison.arm is None:
        raise ConfigError(
            f"morphogenetic.fork_steps={growth.fork_steps}: policy={growth.policy} never hesitates between two sites; "
            "use policy=heuristic, or 0"
        )
    if growth.policy == "schedule":
        late = [at for at in growth.schedule_at if at > growth.growth_until]
        if late or not growth.schedule_at:
            raise ConfigError(
                f"morphogenetic.schedule_at={growth.schedule_at}: needs at least one time, all at most "
                f"morphogenetic.growth_until={growth.growth_until:g}"
            )
    if growth.tamiyo == "shared" and config.bus != "redis":
        raise ConfigError(
            f"morphogenetic.tamiyo=shared: she is asked over the bus, but bus={config.bus}; set bus=redis"
        )
    if (
        growth.tamiyo == "local"
        and growth.policy == "learned"
        and not (growth.tamiyo_policy_path and Path(growth.tamiyo_policy_path).is_file())
    ):
        raise ConfigError(
            f"morphogenetic.tamiyo_policy_path={growth.tamiyo_policy_path}: policy=learned needs a policy file; make "
            "one with: esper simic RUN_FOLDER... --out policy.safetensors"
        )


def _check_recipe(config: TolariaConfig) -> None:
    path = config.morphogenetic.recipe_path
    if config.comparison.arm is not None:  # the recipe is the grown run's, and found at launch
        return
    if path is None or not ((Path(path) / "recipe.json").is_file() or Path(path).is_file()):
        raise ConfigError(
            f"morphogenetic.recipe_path={path}: policy=replay needs a recipe; give a recipe.json, or the folder of a "
            "finished run that holds one"
        )
