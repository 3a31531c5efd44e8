"""The dataset of a run, as MLflow shows it: name, digest, where it lies, how many examples each split has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esper.configs.dataset import DATASETS

__all__ = ["log_dataset"]


def log_dataset(client: Any, run: Any, started: Mapping[str, Any]) -> None:
    """Log the dataset of a run to a run in MLflow, unless that has it.

    Args:
        client: MLflow client.
        run: where to log it.
        started: a `run_started` event; one of an older version has no digest, and nothing is logged.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if not (digest := started.get("data_digest")):
        return
    name, source_type, source = _origin(started["config"]["dataset"])
    inputs = run.inputs.dataset_inputs if run.inputs else []
    if any((one.dataset.name, one.dataset.digest) == (name, digest) for one in inputs):
        return
    profile = {f"num_{split}": number for split, number in started["num_examples"].items()}
    dataset = Dataset(name, digest, source_type, json.dumps(source), profile=json.dumps(profile))
    client.log_inputs(run.info.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _origin(config: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Name of a dataset, and type and description of its source in MLflow's terms."""
    name, folder = config["name"], Path(config["data_dir"])
    info = DATASETS[name]
    if info.has_files or name in ("arrays", "text"):
        return folder.name, "local", {"uri": str(folder)}
    if name in ("cifar10", "cifar100"):
        return name, "local", {"uri": str(folder)}
    if name == "plugin":
        name = str(config["source"])
    return name, "code", {"tags": {"mlflow.source.name": name}}
