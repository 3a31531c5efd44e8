"""Identity of a run: its name and the digest of the settings that define it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from esper.configs.paths import PATHS, as_given
from esper.configs.tolaria import TolariaConfig

__all__ = [
    "CHECKPOINT_NAME",
    "checkpoints_folder",
    "differences",
    "digest",
    "digest_of",
    "family",
    "is_operational",
    "outputs_folder",
    "run_id",
    "run_name",
    "with_defaults",
]

_OPERATIONAL = frozenset(
    {
        "adjusted",
        "bus",
        "checkpoint",
        "database",
        "dataset.num_workers",
        "dataset.timeout_s",
        "debug_mode",
        "description",
        "device",
        "dry_run",
        "experiment_name",
        "fresh",
        "hydra",
        "logging",
        "profile_training",
        "ranks.timeout_s",
        "redis",
        "storage",
        "tags",
        "tracking",
    }
)
"""Settings and groups that say where results go, how a run is monitored and what it runs on, not what is trained."""
_ABSENT = object()
_LATER: dict[str, Any] = {
    "plugins": [],
    "dataset.mixup_alpha": 0.0,
    "dataset.cutmix_alpha": 0.0,
    "dataset.random_erasing": 0.0,
    "dataset.rand_augment_num_ops": 0,
    "dataset.rand_augment_magnitude": 9,
    "dataset.split_seed": None,
    "model.freeze": [],
    "model.init_from": None,
    "model.init_digest": None,
    "model.options": {},
    "model.digest": None,
    "model.patch_size": 4,
    "model.width": 192,
    "model.depth": 6,
    "model.heads": 3,
    "model.mlp_ratio": 4.0,
    "model.positions": "learned",
    "dataset.source": None,
    "dataset.options": {},
    "dataset.digest": None,
    "dataset.target": None,
    "dataset.target_type": "class",
    "dataset.context": 256,
    "dataset.tokenizer": None,
    "dataset.file_pattern": "*",
    "dataset.document_separator": "<|endoftext|>",
    "dataset.split_by": "document",
    "dataset.test_split": 0.1,
    "dataset.epoch_windows": None,
    "optimization.max_macs": None,
    "optimization.accumulate": 1,
    "optimization.optimizer_options": {},
    "optimization.decay_norms_and_biases": False,
    "morphogenetic.schedule_by": "steps",
    "morphogenetic.score_examples": None,
    "morphogenetic.copy_order": "stack",
    "morphogenetic.copy_init": "trained",
    "morphogenetic.copy_optimizer_state": False,
    "morphogenetic.recipe_fraction": 1.0,
    "morphogenetic.policy_digest": None,
    "morphogenetic.plan_path": None,
    "morphogenetic.plan_reason": None,
    "ranks.sync_batch_norm": False,
    "task.name": "classification",
    "task.label_smoothing": 0.0,
    "task.class_weights": [],
}
"""Settings added since 0.1.0 with the value that leaves a run as it was: the digests of older runs stay."""
_DIGESTS = ("model.init_digest", "morphogenetic.policy_digest")
"""Of files that a run starts from; set at launch."""
_NOT_IN_NAMES = (
    "plugins",
    "model.digest",
    "dataset.digest",
    "dataset.data_dir",
    "dataset.tokenizer",
    "model.init_from",
    "morphogenetic.recipe_path",
    "morphogenetic.plan_path",
)
"""Left out of the readable part of a name, since they are long or say little; the digest covers them."""
_TAKEN_FROM_GROWN = (
    "comparison.grown_macs",
    "comparison.grown_run",
    "model.init_from",
    "morphogenetic.schedule_by",
    "optimization.max_epochs",
    "optimization.max_macs",
)
"""Settings of an arm that its grown run decides, see `launch.arms`; the name of the grown run covers them."""
_TAKEN_FROM_PLAN = (
    "morphogenetic.enable_tamiyo",
    "morphogenetic.plan_reason",
    "morphogenetic.policy",
    "morphogenetic.recipe_fraction",
    "morphogenetic.recipe_path",
    "morphogenetic.schedule_at",
    "morphogenetic.schedule_by",
    "optimization.max_macs",
)
"""Settings of a run with policy=planned that its plan decides, see `launch.planned`; the plan's path covers them."""
_WITHIN_FAMILY = (
    "comparison",
    "dataset.data_dir",
    "model.max_kernels_per_seed",
    "model.seeds_per_layer",
    "model.site_kinds",
    "model.target_layers",
    "morphogenetic",
    "optimization.max_epochs",
    "optimization.max_macs",
    "rng_seed",
    *_DIGESTS,
)
"""Settings that say how much is trained, what grows, and where the data lies; what it holds has a digest of its own."""
_MAX_READABLE = 120
CHECKPOINT_NAME = re.compile(r"(step|best|trunk|before)-(\d{8}|[1-9]\d{8,})", re.ASCII)
"""Matches a checkpoint's whole name: others (`step-00000420.bak`) are not Esper's."""


def is_operational(key: str) -> bool:
    """Whether a setting or group (`bus`, `redis.url`, `hydra/launcher`) leaves what is trained unchanged."""
    key = key.replace("/", ".")
    return key in _OPERATIONAL or key.partition(".")[0] in _OPERATIONAL


def digest(config: TolariaConfig) -> str:
    """8 hex digits of the SHA-256 of the settings that define the run."""
    canonical = json.dumps(_settings(dataclasses.asdict(config)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def digest_of(name: str) -> str:
    """The digest in a name that `run_name` gave."""
    return name.rpartition("-")[2]


def family(settings: Mapping[str, Any]) -> str:
    """16 hex digits that trainings of one host, recipe and dataset share, however long they are and whatever grows.

    Args:
        settings: a validated configuration as nested dicts, or a recorded one.

    Raises:
        ValueError: it lacks a setting that defines the run.
    """
    shared = {
        key: value
        for key, value in _flat(_settings(with_defaults(settings)))
        if not any(f"{key}.".startswith(f"{name}.") for name in _WITHIN_FAMILY)
    }
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:16]


def differences(recorded: Mapping[str, Any], config: TolariaConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that define a run and differ from its recorded configuration: recorded and configured value, by name.

    What a run sets itself at its start does not count: the digests of files that it starts from, and the settings that
    an arm takes from its grown run, unless `config` has them already.

    Args:
        recorded: content of the run's `config.yaml`, perhaps of an older version.
        config: a validated configuration.
    """
    configured = dataclasses.asdict(config)
    before, after = (dict(_flat(_settings(dict(one)))) for one in (recorded, configured))
    paths = [{key: value for key, value in _flat(one) if key in PATHS} for one in (recorded, configured)]
    ignored = {key for key in _DIGESTS if before.get(key) is None or after.get(key) is None}
    if before.get("comparison.grown_run") is not None:
        ignored.add("morphogenetic.recipe_path")  # relative to the working directory of each command
        if config.comparison.grown_run is None:
            ignored.update(_TAKEN_FROM_GROWN)
    if before.get("morphogenetic.plan_reason") is not None and config.morphogenetic.policy == "planned":
        ignored.update(_TAKEN_FROM_PLAN)
    return {
        key: (before.get(key, _LATER.get(key)), after.get(key, _LATER.get(key)))
        for key in dict.fromkeys([*after, *before])
        if key not in ignored
        and before.get(key, _ABSENT) != after.get(key, _ABSENT)
        and not _is_same_path(*(one.get(key) for one in paths))
    }


def with_defaults(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded configuration, and the values of the settings that its version of Esper did not know.

    Raises:
        ValueError: it lacks a setting that every version has, and that defines the run, or has one that is unknown.
    """
    return _filled(recorded, dataclasses.asdict(TolariaConfig()))


def _filled(recorded: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    filled = dict(recorded)
    if known and (unknown := sorted(recorded.keys() - known.keys())):  # an empty group, of options, has any
        raise ValueError(f"{prefix}{unknown[0]} is no setting of this version of Esper")
    for name, default in known.items():
        key = prefix + name
        if isinstance(default, dict) and isinstance(recorded.get(name, {}), Mapping):
            filled[name] = _filled(recorded.get(name, {}), default, f"{key}.")
        elif name not in recorded:
            if key not in _LATER and not is_operational(key):
                raise ValueError(f"{key} is missing")
            filled[name] = _LATER.get(key, default)
    return filled


def _flat(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in group.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _is_same_path(before: Any, after: Any) -> bool:
    return isinstance(before, str) and isinstance(after, str) and Path(before).absolute() == Path(after).absolute()


def run_id(run_dir: Path) -> str:
    """Identify a run within a lab: `<experiment folder>/<run folder>`."""
    return f"{run_dir.absolute().parent.name}/{run_dir.name}"


def run_name(config: TolariaConfig, overrides: Sequence[str]) -> str:
    """Name of the run folder: the overrides, then the digest; at most 129 letters, digits, `.`, `_` and `-`.

    It has no `=` or `,`, so that `checkpoint.resume_from=outputs/...` needs no quotes.

    Args:
        config: the validated configuration.
        overrides: as on the command line: `["morphogenetic=off", "rng_seed=1"]` gives
            `morphogenetic_off-rng_seed_1-` and the digest.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    # As Hydra formats a sweep's overrides: `nesterov=true` alone and in a sweep is the same run.
    named = sorted(
        f"{override.key_or_group.rpartition('.')[2]}={override.get_value_element_as_str()}"
        for override in parsed
        if not is_operational(override.key_or_group) and override.key_or_group not in _NOT_IN_NAMES
    )
    words = [re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_") for text in named]
    readable = re.sub(r"\.{2,}", ".", "-".join(words))[:_MAX_READABLE].strip("._-") or "run"
    return f"{readable}-{digest(config)}"


def _settings(group: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Drop operational settings; write paths as given, and numbers that compare equal alike (1 and 1.0)."""
    kept = {}
    for name, value in group.items():
        if is_operational(prefix + name) or _LATER.get(prefix + name, _ABSENT) == value:
            continue
        if isinstance(value, dict):
            inner = _settings(value, f"{prefix}{name}.")
            if value and not inner:  # every setting in it is left out
                continue
            value = inner
        elif isinstance(value, list):
            value = [_number(item) for item in value]
        elif prefix + name in PATHS and isinstance(value, str):
            value = as_given(value)
        kept[name] = _number(value)
    return kept


def _number(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value == float(value)
    return float(value) if whole else value


def outputs_folder(run_dir: Path, *, experiment_name: str) -> Path:
    """The folder shared by all experiments: `outputs` of `outputs/<experiment>/<run>`, else the run folder."""
    return run_dir.parents[1] if run_dir.parent.name == experiment_name else run_dir


def checkpoints_folder(run_dir: Path, *, checkpoint_dir: str | None) -> Path:
    """The run's checkpoint folder: `checkpoints` in the run folder, or `checkpoint.checkpoint_dir` / run name."""
    return Path(checkpoint_dir).absolute() / run_dir.name if checkpoint_dir else run_dir / "checkpoints"
