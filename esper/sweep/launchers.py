"""The launchers: `hydra/launcher=NAME` runs the members of a sweep as jobs of the queue of that name.

To add one, write queues/NAME.py, list its class here, and write conf/hydra/launcher/NAME.yaml with
`_target_: hydra_plugins.esper.launchers.NameLauncher` and its options.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from esper.configs.check import check_group
from esper.configs.explain import nearest
from esper.errors import ConfigError, RunError
from esper.sweep.queues.base import Queue
from esper.sweep.queues.local import LocalQueue
from esper.sweep.queues.packed import PackedQueue
from esper.sweep.queues.slurm import SlurmQueue

__all__ = ["QUEUES", "queue_of", "queue_type"]

QUEUES: dict[str, type[Queue]] = {
    "local": LocalQueue,
    "packed": PackedQueue,
    "slurm": SlurmQueue,
}


def queue_type(name: str) -> type[Queue]:
    """The class of a queue.

    Raises:
        RunError: there is none of that name.
    """
    if name not in QUEUES:
        raise RunError(f"a record in .sweep names the queue {name!r:.40}; there are {', '.join(QUEUES)}")
    return QUEUES[name]


def queue_of(name: str, options: Mapping[str, Any]) -> Queue:
    """The queue of a launcher, with its options checked; `_target_`, which Hydra reads, is none.

    Raises:
        ConfigError: an option that does not exist, or a value that is not allowed.
    """
    schema = queue_type(name).options_type
    given = OmegaConf.to_container(OmegaConf.create(dict(options)), resolve=True)
    assert isinstance(given, dict)
    known = [field.name for field in dataclasses.fields(schema)]
    given.pop("_target_", None)
    if unknown := [str(key) for key in given if key not in known]:
        raise ConfigError(f"hydra.launcher.{unknown[0]}: no such setting{nearest(unknown[0], known)}")
    checked = schema(**{str(key): value for key, value in given.items()})
    check_group(checked, prefix="hydra.launcher.")
    return QUEUES[name](checked)
