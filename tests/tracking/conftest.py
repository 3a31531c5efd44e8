"""Journals of a run as the trainer writes them, without the training."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from esper.configs import TolariaConfig, TrackingConfig
from esper.contracts.events import (
    EpochEnded,
    Judged,
    RunEnded,
    RunStarted,
    StateChanged,
    StepLogged,
    SurgeryEnded,
    Validated,
)
from esper.tracking import Journal, TrackerThread, trackers
from tests.conftest import result_of


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """The empty journal of a new run; its parent is the run folder."""
    journal = Journal(tmp_path / "tiny" / "run" / "journal.jsonl")
    yield journal
    journal.close()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")  # one database for the module: its tables take seconds


def client(outputs: Path) -> Any:
    """Of the MLflow that runs under `outputs` report to."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")


def mlflow_run(outputs: Path, run_dir: Path) -> Any:
    """The one run of MLflow that a run folder was reported to."""
    (run_id,) = json.loads((run_dir / "mlflow.json").read_text())["run_ids"].values()
    return client(outputs).get_run(run_id)


def start_thread(journal: Journal, warnings: list[str], **tracking: Any) -> TrackerThread:
    """Begin to report a journal while it is written, to the one tracker that is on."""
    run_dir = journal.path.parent
    (tracker,) = trackers(TrackingConfig(**tracking), run_dir=run_dir, outputs_dir=run_dir.parents[1])
    return TrackerThread(tracker, interval_s=0.05, run_dir=run_dir, warn=warnings.append)


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def started(journal: Journal, *, resumed_from: str | None = None, step: int = 0, **changes: Any) -> None:
    """Journal the start of a run, with a configuration in which `changes` are made."""
    config = TolariaConfig(experiment_name="tiny", description="a tiny run", tags=["quick", "small"], **changes)
    journal.write(
        RunStarted(
            step=step,
            run_name=journal.path.parent.name,
            experiment_name="tiny",
            total_steps=8,
            total_epochs=2,
            steps_per_epoch=4,
            num_parameters=100,
            num_macs=1000,
            num_sites=2,
            device="cpu",
            config=dataclasses.asdict(config),
            environment={
                "git_commit": "0123abcd",
                "git_dirty": "true",
                "user": "ada",
                "source": "a.ipynb",
                "gpu": None,
            },
            data_digest="0011223344556677",
            num_examples={"train": 60, "test": 20},
            resumed_from=resumed_from,
        )
    )


def trained(journal: Journal, steps: range, *, loss: float = 1.0) -> None:
    """Journal training steps, and after every fourth the end of an epoch."""
    for step in steps:
        fields = {
            "metrics": {"accuracy": 0.5},
            "learning_rate": 0.1,
            "grad_norm": 2.0,
            "images_per_s": 9.0,
            "memory_bytes": 7,
        }
        journal.write(StepLogged(step=step, epoch=(step - 1) // 4, loss=loss / step, **fields))  # type: ignore[arg-type]
        if step % 4 == 0:
            epoch = step // 4
            journal.write(Validated(step=step, epoch=epoch, val_loss=0.7, val_metrics={"accuracy": 0.6}))
            means = {
                "train_loss": 0.9,
                "train_metrics": {"accuracy": 0.5},
                "val_loss": 0.7,
                "val_metrics": {"accuracy": 0.6},
            }
            rest = {"learning_rate": 0.1, "adaptations_applied": 0, "epoch_time": 1.5}
            journal.write(EpochEnded(step=step, epoch=epoch, **means, **rest))  # type: ignore[arg-type]


def grew(journal: Journal, *, step: int, graft_id: int, num_parameters: int, kept: bool | None = None) -> None:
    """Journal a germination that leads to so many parameters, and the judge's verdict if there is one."""
    where = {"graft_id": graft_id, "site": f"layer{graft_id}.0:beside", "blueprint_id": "conv1x1"}
    journal.write(
        SurgeryEnded(
            step=step,
            **where,  # type: ignore[arg-type]
            action="germinate",
            committed=True,
            error=None,
            num_parameters_before=100,
            num_parameters_after=num_parameters,
            num_macs_before=1000,
            num_macs_after=1500,
            duration_s=0.1,
        )
    )
    if kept is None:
        return
    measured = {"loss_off": 0.8, "loss_on": 0.7, "gain": 0.1, "lower_bound": 0.05, "threshold": 0.016}
    counted = {"num_examples": 64, "added_parameters": 20, "added_macs": 500, "cost_macs": 9, "cost_s": 0.1}
    journal.write(Judged(step=step, epoch=1, confidence=0.95, kept=kept, **where, **measured, **counted))  # type: ignore[arg-type]
    new = "fossilized" if kept else "culled"
    seed = {"site": where["site"], "blueprint_id": "conv1x1", "old": "holding", "reason": "judged"}
    journal.write(StateChanged(step=step, epoch=1, new=new, **seed))  # type: ignore[arg-type]


def ended(journal: Journal, status: str = "finished", *, reason: str = "", step: int = 8) -> None:
    """Journal the end of a run."""
    result = result_of() if status == "finished" else None
    journal.write(RunEnded(step=step, status=status, reason=reason, result=result))
