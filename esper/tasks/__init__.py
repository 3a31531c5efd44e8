"""Tasks: from the network's output and a target to losses and metrics."""

from __future__ import annotations

import importlib

import torch

from esper import plugins
from esper.configs import TaskConfig
from esper.configs.task import TASKS
from esper.data import DataSpec
from esper.errors import ConfigError
from esper.tasks.task import Detail, Metric, Task, as_figures, by_example, mean_values, num_values, sum_values

__all__ = [
    "Detail",
    "Metric",
    "Task",
    "as_figures",
    "build_task",
    "by_example",
    "mean_values",
    "num_values",
    "sum_values",
]


def build_task(config: TaskConfig, spec: DataSpec, device: torch.device) -> Task:
    """Make the configured task for data on a device.

    Raises:
        ConfigError: it does not fit the data.
    """
    if config.name in TASKS:
        task: Task = importlib.import_module(TASKS[config.name]).build(config, spec, device)
        return task
    setting = f"task.name={config.name}"
    own = plugins.build(plugins.find("task", config.name), config, spec, device, setting=setting)
    if not isinstance(own, Task):
        raise ConfigError(f"{setting}: gave a {type(own).__name__}; it must make an esper.tasks.Task")
    return own
