"""The task: what the network's output is for, its loss and its metrics."""

from __future__ import annotations

from dataclasses import dataclass

from esper.configs.schema import setting

__all__ = ["TASKS", "TaskConfig"]

TASKS = {
    "classification": "esper.tasks.classification",
    "language_model": "esper.tasks.language_model",
    "regression": "esper.tasks.regression",
    "multilabel": "esper.tasks.multilabel",
}
"""Modules of the tasks, each with `build(config, spec, device)`."""


@dataclass(kw_only=True)
class TaskConfig:
    """Group `task`."""

    name: str = setting("classification", "what the network learns", choices=tuple(TASKS), registered="task")
    label_smoothing: float = setting(
        0.0,
        "classification, language_model: share of each target's probability that is spread over all classes, in the "
        "training loss only",
        low=0,
        below=1,
    )
    class_weights: list[float] = setting(
        [],
        "classification: factor on the loss of each class's examples (multilabel: of each label's positives), in the "
        "training loss only; []: all 1",
        above=0,
    )
