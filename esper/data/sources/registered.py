"""Datasets of the user's own, which a plugin has registered with `@esper.dataset("name")`, or that `fit` was given."""

from __future__ import annotations

from pathlib import Path

from esper import plugins
from esper.configs import DatasetConfig
from esper.data.images import Dataset
from esper.data.own import own_dataset
from esper.errors import DataError
from esper.images.fingerprint import Fingerprint

__all__ = ["fingerprint", "load"]


def load(config: DatasetConfig, _cache_dir: Path | None) -> Dataset:
    """What the registered function returns for `dataset.options`; see `own_dataset`.

    Raises:
        ConfigError: the options are not its own, or it fails.
        DataError: the data cannot be used, or nothing is registered.
    """
    made = plugins.find("dataset", config.source or "")
    if made is None:
        raise DataError(f"dataset.source={config.source}: no plugin has registered it; name its module in plugins")
    data = plugins.call("dataset", made, setting=f"dataset.source={config.source}", options=config.options)
    return own_dataset(data, test_split=config.test_split, where=f"dataset {config.source}")


def fingerprint(config: DatasetConfig) -> Fingerprint:
    """Of the data that it returns now."""
    return load(config, None).fingerprint
