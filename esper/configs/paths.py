"""Paths in settings start in the folder of the command: they are made absolute where a configuration is checked.

`./data` in `/lab` becomes `/lab/././data`, as rsync writes it: what follows the first `/./` is the path as given. So a
run finds its files from anywhere, but its name does not depend on where the checkout lies.
"""

from __future__ import annotations

import dataclasses
import os
import re
from operator import attrgetter
from pathlib import Path
from urllib.parse import unquote, urlsplit

from esper.configs.tolaria import TolariaConfig

__all__ = ["PATHS", "absolute_paths", "absolute_url", "absolute_variables", "as_given", "mark", "sqlite_url"]

PATHS = (
    "model.init_from",
    "dataset.data_dir",
    "dataset.tokenizer",
    "morphogenetic.tamiyo_policy_path",
    "morphogenetic.recipe_path",
    "morphogenetic.plan_path",
    "logging.log_dir",
    "checkpoint.checkpoint_dir",
    "checkpoint.resume_from",
    "storage.compile_cache_dir",
    "redis.ca_file",
)
_URLS = ("tracking.uri", "database.url")
_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)(?!/|file:|:memory:)([^?]+)(\?.*)?", re.DOTALL)


def absolute_paths(config: TolariaConfig, folder: str | Path | None = None) -> TolariaConfig:
    """The configuration with absolute paths; relative ones start in `folder`, by default the working directory."""
    for names, absolute in ((PATHS, mark), (_URLS, absolute_url)):
        for group, _, name in (key.partition(".") for key in names):
            value = attrgetter(f"{group}.{name}")(config)
            if isinstance(value, str) and value:
                changed = dataclasses.replace(getattr(config, group), **{name: absolute(value, folder or Path.cwd())})
                config = dataclasses.replace(config, **{group: changed})
    return config


def absolute_variables() -> None:
    """Make MLFLOW_TRACKING_URI absolute; to be called before Hydra leaves the folder of the command."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        os.environ["MLFLOW_TRACKING_URI"] = absolute_url(uri, Path.cwd())


def mark(path: str, folder: str | Path) -> str:
    """An absolute path, from which `as_given` finds what was given."""
    path = str(Path(path).expanduser()) if path.startswith("~") else path
    return path if path.startswith("/") else f"{folder}/./{path}"


def as_given(path: str) -> str:
    """A path as it was given, perhaps relative."""
    _, marked, given = path.partition("/./")
    return given if marked and path.startswith("/") else path


def absolute_url(url: str, folder: str | Path) -> str:
    """The URL of a database or of MLflow's files, with an absolute path."""
    if sqlite := _SQLITE.fullmatch(url):
        prefix, file, query = sqlite.groups()
        absolute = sqlite_url(Path(folder, unquote(file)).expanduser())
        return absolute.replace("sqlite:///", prefix, 1) + (query or "")
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc and not parts.path.startswith("/"):
        return Path(folder, unquote(parts.path)).as_uri()
    if not parts.scheme and url != "databricks" and "@" not in url:  # a folder, and no TOKEN@HOST
        return str(Path(folder, url).expanduser())
    return url


def sqlite_url(file: Path) -> str:
    """The URL of an SQLite file: SQLAlchemy reads `?` and `%` as parts of a URL."""
    path = str(file.absolute())
    quoted = path.replace("%", "%25").replace("?", "%3F")
    # After sqlite:///, MLflow would create a folder of the quoted name.
    return f"sqlite:///{path}" if quoted == path else f"sqlite+pysqlite:///{quoted}"
