"""The standard library of the Python that runs, as text: its packages and modules, of which some are the test split.

Without its tests, and without what differs from one machine to another.
"""

from __future__ import annotations

import dataclasses
import sysconfig
from pathlib import Path

from esper.configs import DatasetConfig
from esper.data.sources.text import find_files, fingerprint_text, load_text
from esper.data.splits import DataSplits
from esper.errors import DataError
from esper.images.fingerprint import Fingerprint

__all__ = ["fingerprint", "load"]

_SKIPPED = (
    "__pycache__",
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "config-*",
    "_sysconfigdata*",
    "sitecustomize.py",
)


def load(config: DatasetConfig, *, split_seed: int, cache_dir: Path | None) -> DataSplits:
    """Split the sources by package; see `load_text`.

    Raises:
        DataError: this Python comes without its sources, or a split would be too small.
    """
    return load_text(_settings(config), _files(), split_seed=split_seed, cache_dir=cache_dir)


def fingerprint(config: DatasetConfig) -> Fingerprint:
    """Of the sources of this version of Python."""
    return fingerprint_text(_settings(config), _files())


def _settings(config: DatasetConfig) -> DatasetConfig:
    return dataclasses.replace(config, document_separator="", split_by="folder")


def _files() -> list[str]:
    folder = sysconfig.get_path("stdlib")
    found = find_files(Path(folder), "*.py", skipped=_SKIPPED)
    if not found:
        raise DataError(f"dataset=python_source: this Python has no sources in {folder}; use dataset=text")
    return found
