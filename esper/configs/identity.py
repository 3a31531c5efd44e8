"""Which run a configuration is: the same settings are the same run, whatever watches it or saves it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from esper.configs.tolaria import TolariaConfig

__all__ = ["checkpoints_folder", "digest", "outputs_folder", "run_id", "run_name"]

# Where results go, how the run is watched, what it runs on: none of it makes another run.
_APART = frozenset(
    {
        "bus",
        "checkpoint",
        "database",
        "dataset.num_workers",
        "debug_mode",
        "description",
        "device",
        "dry_run",
        "experiment_name",
        "fresh",
        "hydra",
        "logging",
        "profile_training",
        "redis",
        "storage",
        "tags",
        "tracking",
    }
)
_PATHS = ("dataset.data_dir", "morphogenetic.recipe_path")
_MAX_READABLE = 120


def digest(config: TolariaConfig) -> str:
    """8 hex digits of the SHA-256 of the settings that define the run."""
    canonical = json.dumps(_settings(dataclasses.asdict(config)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def run_id(run_dir: Path) -> str:
    """Name of a run among those of a lab: its experiment's folder and its own."""
    return f"{run_dir.absolute().parent.name}/{run_dir.name}"


def run_name(config: TolariaConfig, overrides: Sequence[str]) -> str:
    """Name of the run's folder: what was asked for, then the digest; at most 129 letters, digits, `.`, `_` and `-`.

    Without `=` and `,`, so that `checkpoint.resume_from=outputs/...` needs no quotes.

    Args:
        config: the validated configuration.
        overrides: what was written on the command line: `["morphogenetic=off", "rng_seed=1"]` gives
            `morphogenetic_off-rng_seed_1-` and the digest.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    # Written back as Hydra writes a sweep's members: `nesterov=true` alone and in a sweep is the same run.
    asked = sorted(
        f"{one.key_or_group.rpartition('.')[2]}={one.get_value_element_as_str()}"
        for one in parsed
        if not _is_apart(one) and one.key_or_group not in _PATHS  # long, and told by the digest
    )
    words = [re.sub(r"[^A-Za-z0-9.-]+", "_", one).strip("_") for one in asked]
    readable = re.sub(r"\.{2,}", ".", "-".join(words))[:_MAX_READABLE].strip("._-") or "run"
    return f"{readable}-{digest(config)}"


def _is_apart(override: Override) -> bool:
    key = override.key_or_group.replace("/", ".")
    return key in _APART or key.partition(".")[0] in _APART


def _settings(group: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The group without what is apart, and with numbers that compare equal written the same (1 and 1.0)."""
    kept = {}
    for name, value in group.items():
        if prefix + name in _APART:
            continue
        if isinstance(value, dict):
            value = _settings(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            value = [_number(item) for item in value]
        kept[name] = _number(value)
    return kept


def _number(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value == float(value)
    return float(value) if whole else value


def outputs_folder(run_dir: Path, *, experiment_name: str) -> Path:
    """The folder that a run shares with others: `outputs` of `outputs/<experiment>/<run>`, else the run folder."""
    return run_dir.parents[1] if run_dir.parent.name == experiment_name else run_dir


def checkpoints_folder(run_dir: Path, *, checkpoint_dir: str | None) -> Path:
    """The folder of a run's own checkpoints: in the run folder, or under its name in `checkpoint.checkpoint_dir`."""
    return Path(checkpoint_dir).absolute() / run_dir.name if checkpoint_dir else run_dir / "checkpoints"
