"""Check a configuration: each setting against its declaration, then settings against each other."""

from __future__ import annotations

import math
import re
import types
import typing
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

from esper import plugins
from esper.configs.check_growth import check_growth
from esper.configs.check_text import check_text
from esper.configs.check_training import check_training
from esper.configs.comparison import ARMS
from esper.configs.dataset import DATASETS, DatasetConfig
from esper.configs.explain import nearest
from esper.configs.model import HOSTS, ModelConfig
from esper.configs.recorded import check_credentials
from esper.configs.redis import parse_redis_url
from esper.configs.schema import Allowed, kind, settings
from esper.configs.tolaria import TolariaConfig
from esper.errors import ConfigError

__all__ = ["check", "check_group"]


def check(config: TolariaConfig) -> None:
    """Refuse a configuration that cannot be used. Looks at paths, but not at devices.

    Raises:
        ConfigError: the first problem: key, value, and what is allowed or what to do.
    """
    plugins.load(config.plugins)
    check_group(config)
    _check_names(config)
    _check_model(config)
    _check_dataset(config.dataset)
    check_text(config)
    check_training(config)
    _check_mps(config)
    if config.comparison.arm is not None:
        _check_arm(config, config.comparison.arm)
    if config.morphogenetic.enable_tamiyo:
        check_growth(config)
    if config.checkpoint.save_trunk and config.optimization.scheduler != "wsd":
        raise ConfigError(
            f"checkpoint.save_trunk=true: needs a learning rate that is constant before it decays, but "
            f"optimization.scheduler={config.optimization.scheduler}; use wsd, or save_trunk=false"
        )
    if config.checkpoint.resume_from is not None:
        _check_start(config.checkpoint.resume_from)


def _check_start(resume_from: str) -> None:
    """Check that a folder is a checkpoint, which `""` as of an unset variable is not."""
    folder = Path(resume_from).expanduser()
    if resume_from and (folder / "manifest.json").exists():
        return
    problem = "holds no checkpoint, as it has no manifest.json" if folder.is_dir() and resume_from else "no such folder"
    newest = max((folder / "checkpoints").glob("step-*/"), default=None) if resume_from else None
    example = str(newest) if newest else "outputs/EXPERIMENT/RUN/checkpoints/step-N"
    raise ConfigError(f"checkpoint.resume_from={resume_from!r}: {problem}; give a checkpoint, such as {example}")


def check_group(group: Any, prefix: str = "") -> None:
    """Check each setting of a dataclass against its type and declaration; `prefix` precedes their names in messages.

    Raises:
        ConfigError: the first problem.
    """
    for key, hint, limits in settings(type(group)):
        _check_setting(prefix + key, attrgetter(key)(group), hint, limits)


def _check_setting(key: str, value: Any, hint: Any, limits: Allowed) -> None:
    if isinstance(hint, types.UnionType):  # such as int | None
        if value is None:
            return
        hint = typing.get_args(hint)[0]
    expected = typing.get_origin(hint) or hint
    is_type = isinstance(value, int | float if expected is float else expected)
    if not is_type or (isinstance(value, bool) and expected is not bool):
        raise ConfigError(f"{key}={value!r}: must be {kind(hint)}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            _check_setting(f"{key}[{index}]", item, typing.get_args(hint)[0], limits)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value}: must be finite")
    elif not limits.admits(value):
        verb, suggestion = ("are", nearest(value, limits.names)) if limits.choices else ("is", "")
        raise ConfigError(f"{key}={value}: allowed {verb} {limits}{suggestion}")


def _check_names(config: TolariaConfig) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", config.experiment_name) or ".." in config.experiment_name:
        raise ConfigError(
            f"experiment_name={config.experiment_name!r}: allowed is the name of a folder: up to 64 letters, digits, "
            "'_', '-' and single '.', beginning with a letter or digit"
        )
    if config.redis.url not in (None, "embedded"):
        parse_redis_url(config.redis.url)
    check_credentials(config)
    _check_register(config)
    if config.tracking.name in ("wandb", "both") and find_spec("wandb") is None:
        raise ConfigError(
            f"tracking={config.tracking.name}: needs the package wandb, which is not installed; "
            "pip install 'esper-train[wandb]', or use tracking=mlflow"
        )


def _check_mps(config: TolariaConfig) -> None:
    for key, default in (("mixed_precision", "null"), ("compile_model", "false")):
        if config.device == "mps" and getattr(config, key):
            raise ConfigError(f"{key}=true: device=mps trains in float32, uncompiled; leave {key}={default}")


def _check_register(config: TolariaConfig) -> None:
    name = config.tracking.register
    if name is None:
        return
    key = f"tracking.register={name}"
    if config.tracking.name not in ("mlflow", "both"):
        raise ConfigError(f"{key}: the registry is MLflow's, but tracking={config.tracking.name}; use tracking=mlflow")
    if not re.fullmatch(r"\w([\w .-]{0,98}[\w-])?", name) or ".." in name:
        raise ConfigError(
            f"{key}: allowed is a name of up to 100 letters, digits, spaces, '_', '-' and single '.', beginning with a "
            "letter or digit"
        )
    if config.model.digest is not None:
        raise ConfigError(
            f"{key}: a network given to fit as an object cannot be loaded elsewhere; register its class with "
            '@esper.model("NAME") in a module, and name that in plugins=[MODULE]'
        )


def _check_model(config: TolariaConfig) -> None:
    model = config.model
    _check_architecture(model)
    _check_init_from(config)
    if model.source == "plugin":
        _check_new_weights(config)
    if config.morphogenetic.enable_tamiyo and not model.target_layers:
        raise ConfigError("model.target_layers=[]: nothing may grow; name layers, or use morphogenetic=off")
    if config.morphogenetic.enable_tamiyo and not model.site_kinds:
        raise ConfigError("model.site_kinds=[]: nothing may grow; name kinds of site, or use morphogenetic=off")
    if model.gradient_checkpointing and config.compile_model:
        raise ConfigError(
            "model.gradient_checkpointing=true: recomputed blocks cannot be compiled (compile_model=true); set one of "
            "the two to false"
        )
    excluded = {"model.gradient_checkpointing": model.gradient_checkpointing, "compile_model": config.compile_model}
    for key, value in excluded.items():
        if value and config.ranks.sync_batch_norm:
            raise ConfigError(f"ranks.sync_batch_norm=true: does not go with {key}=true; set one of the two to false")
    inside = [name for name in model.site_kinds if name in ("parallel", "width")]
    if model.gradient_checkpointing and inside:
        raise ConfigError(
            f"model.gradient_checkpointing=true: blocks run twice, so that modules growing inside them "
            f"({', '.join(inside)} in model.site_kinds) would count every batch twice; use one of the two"
        )


def _check_init_from(config: TolariaConfig) -> None:
    model, growth = config.model, config.morphogenetic
    if model.init_from is None:
        return
    if not model.init_from:
        raise ConfigError(
            "model.init_from='': which network? Give the folder of a run, a checkpoint, or what esper export wrote"
        )
    if model.pretrained:
        raise ConfigError("model.pretrained=true: model.init_from brings other weights; leave one of the two out")
    if growth.enable_tamiyo and growth.policy == "replay" and config.comparison.arm is None:
        raise ConfigError(
            "morphogenetic.policy=replay: trains from scratch, but model.init_from has weights; leave one of them out"
        )


def _check_architecture(model: ModelConfig) -> None:
    if model.source == "timm":
        if not model.name:
            raise ConfigError("model=timm: which network? Add model.name=NAME, such as model.name=convnext_atto")
        if model.stem != "auto":
            raise ConfigError(f"model.stem={model.stem}: timm's networks keep their own stem; leave it auto")
        return
    if model.source == "plugin":
        _check_plugin_model(model)
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
    if model.name in ("vit", "gpt") and model.width % model.heads:
        raise ConfigError(
            f"model.heads={model.heads}: heads share model.width={model.width}; allowed are its divisors, such as "
            f"{max(heads for heads in range(1, model.heads) if model.width % heads == 0)}"
        )


def _check_plugin_model(model: ModelConfig) -> None:
    known = plugins.names("model")
    if not model.name:
        names = ", ".join(known) or "none; name its module in plugins=[MODULE]"
        raise ConfigError(f"model=plugin: which network? Add model.name=NAME; there are: {names}")
    if model.name not in known:
        names = (
            f"allowed are {', '.join(known)}{nearest(model.name, known)}" if known else "no plugin has registered one"
        )
        raise ConfigError(f'model.name={model.name}: {names}; @esper.model("NAME") in a module of plugins=[MODULE]')
    if model.pretrained or model.stem != "auto":
        key = "pretrained=true" if model.pretrained else f"stem={model.stem}"
        raise ConfigError(f"model.{key}: not for networks of your own; leave it out, or take it from model.options")


def _check_new_weights(config: TolariaConfig) -> None:
    """Refuse initial weights of a network that is a module with weights."""
    found, growth = plugins.find("model", config.model.name), config.morphogenetic
    if not growth.enable_tamiyo or isinstance(found, type) or not hasattr(found, "state_dict"):
        return
    if growth.policy == "replay":
        key, what = "policy=replay", "trains from scratch"
    elif growth.copy_init == "fresh" and growth.grows_copies:
        key, what = "copy_init=fresh", "gives copies new initial weights"
    else:
        return
    raise ConfigError(
        f"morphogenetic.{key}: {what}, but {config.model.name} is a module that has weights already; pass its class, "
        "or a function that makes it"
    )


def _check_dataset(dataset: DatasetConfig) -> None:
    info = DATASETS[dataset.name]
    if dataset.name == "plugin" and dataset.source not in (known := plugins.names("dataset")):
        names = ", ".join(known) or "none; name its module in plugins=[MODULE]"
        raise ConfigError(f"dataset.source={dataset.source}: no plugin has registered it; there are: {names}")
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
    elif dataset.storage == "stream" and not info.is_text:
        raise ConfigError(
            f"dataset.storage=stream: {dataset.name} has no image files to stream; use auto, or dataset=imagefolder"
        )


def _check_folder(dataset: DatasetConfig) -> None:
    folder = Path(dataset.data_dir).expanduser()
    if not (folder / "train").is_dir() or not ((folder / "val").is_dir() or (folder / "test").is_dir()):
        raise ConfigError(
            f"dataset.data_dir={dataset.data_dir}: needs a folder train/ and a folder val/ or test/, with a subfolder "
            f"of images for each class{'' if folder.exists() else '; there is no such folder'}"
        )
    if dataset.image_size is None:
        if dataset.storage == "stream" or DATASETS[dataset.name].is_streamed:
            raise ConfigError("dataset.image_size=null: needs a size to resize the images to; set it, such as 224")
    elif dataset.canvas_size is not None and dataset.canvas_size < dataset.image_size:
        raise ConfigError(
            f"dataset.canvas_size={dataset.canvas_size}: allowed is at least dataset.image_size={dataset.image_size}, "
            "or null"
        )


def _check_arm(config: TolariaConfig, arm: str) -> None:
    growth, policy = config.morphogenetic, ARMS[arm].policy
    if config.optimization.patience is not None:
        raise ConfigError(
            f"optimization.patience={config.optimization.patience}: with early stopping the arms of a comparison get "
            "unequal budgets; leave it null"
        )
    if policy is None and growth.enable_tamiyo:
        raise ConfigError(
            f"morphogenetic.enable_tamiyo=true: comparison.arm={arm} does not grow; select it with arm={arm}, which "
            "sets that"
        )
    if policy is not None and not growth.enable_tamiyo:
        raise ConfigError(
            f"morphogenetic.enable_tamiyo=false: comparison.arm={arm} needs growth to compare with; leave out "
            "morphogenetic=off"
        )
    if policy and growth.policy != policy:
        raise ConfigError(
            f"morphogenetic.policy={growth.policy}: comparison.arm={arm} is policy={policy}; leave the policy out, or "
            "choose that of arm=grown with morphogenetic=NAME"
        )
    if policy == "replay" and (growth.recipe_fraction < 1) != (arm == "between_flops"):
        allowed = "below 1" if arm == "between_flops" else "1"
        raise ConfigError(
            f"morphogenetic.recipe_fraction={growth.recipe_fraction:g}: allowed is {allowed} with "
            f"comparison.arm={arm}; leave it out"
        )
