"""Fit a policy to recorded runs: ridge regression of a module's judged gain on the signals at its germination."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from esper.contracts.health import HealthSignal
from esper.contracts.lifecycle import SeedLifecycleState
from esper.errors import RunError, WriteError
from esper.files import make_folder
from esper.tamiyo.policies.learned import FEATURES, SCHEMA, features
from esper.tolaria.library import declare_recorded
from esper.tracking import read, run_folders
from esper.urza import get
from esper.urza.copied import COPY

__all__ = ["MIN_OUTCOMES", "fit", "main", "training_examples"]

MIN_OUTCOMES = 8
"""Minimum number of judged modules."""


def main(paths: Sequence[Path], out: Path) -> int:
    """Fit a policy to the runs in some folders and write it; returns the exit code.

    Raises:
        RunError: a folder holds no run, a journal cannot be used, or there are too few judged modules.
        WriteError: the file cannot be written.
    """
    journals = [folder / "journal.jsonl" for path in paths for folder in run_folders(path)]
    if not journals:
        raise RunError(f"no journal.jsonl in {', '.join(map(str, paths))}; give folders of runs")
    rows = [row for journal in journals for row in training_examples(journal)]
    if len(rows) < MIN_OUTCOMES:
        raise RunError(
            f"{len(rows)} judged modules in {len(journals)} runs; at least {MIN_OUTCOMES} are needed: train more "
            "runs that grow, e.g. esper-train -m experiment=quickstart 'rng_seed=range(0,10)' "
            "morphogenetic=random"
        )
    make_folder(out.parent)
    metadata = {"esper": json.dumps({"schema": SCHEMA, "features": FEATURES, "n": len(rows)})}
    try:
        save_file(fit(rows), out, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise WriteError(f"cannot write {out}: {error}") from None
    sys.stdout.write(f"fitted to {len(rows)} judged modules of {len(journals)} runs: {out}\n")
    return 0


def training_examples(journal: Path) -> list[tuple[list[float], float]]:
    """Features at germination and relative gain of each judged module of a run."""
    declare_recorded(journal.parent)
    signals: list[HealthSignal] = []
    germinated: dict[int, list[float]] = {}
    rows = []
    for event in read(journal):
        if event["kind"] == "signals":
            signals = _signals(event["signals"], journal)
        elif event["kind"] == "surgery" and event["action"] == "germinate" and event["committed"]:
            # No features for copies: their cost depends on the network, and policy=learned does not grow them.
            is_copy = event["blueprint_id"] == COPY
            measured = [s for s in signals if s.site == event["site"] and s.score is not None and not is_copy]
            if measured:
                germinated[event["graft_id"]] = features(measured[0], signals, get(event["blueprint_id"]))
        elif event["kind"] == "judgement" and event["graft_id"] in germinated and event["gain"] is not None:
            if event["loss_off"] == 0.0:  # no loss to reduce
                continue
            rows.append((germinated[event["graft_id"]], event["gain"] / event["loss_off"]))
    return rows


def fit(rows: Sequence[tuple[list[float], float]], *, ridge: float = 1.0) -> dict[str, Tensor]:
    """Ridge regression on standardised features; the tensors of a policy file, float64."""
    inputs = torch.tensor([row for row, _ in rows], dtype=torch.float64)
    gains = torch.tensor([gain for _, gain in rows], dtype=torch.float64)
    mean, deviation = inputs.mean(0), inputs.std(0, unbiased=False)
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    standard = (inputs - mean) / deviation
    penalty = ridge * torch.eye(inputs.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(standard.T @ standard + penalty, standard.T @ (gains - gains.mean()))
    return {"weights": weights, "bias": gains.mean(), "mean": mean, "deviation": deviation}


def _signals(entries: Sequence[dict[str, Any]], journal: Path) -> list[HealthSignal]:
    try:
        return [
            HealthSignal(
                **{
                    **entry,
                    "in_shape": tuple(entry["in_shape"]),
                    "out_shape": tuple(entry["out_shape"]),
                    "state": SeedLifecycleState(entry["state"]),
                }
            )
            for entry in entries
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{journal}: signals of another version of Esper ({error}); leave that run out") from None
