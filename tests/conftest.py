"""Shared pieces: a tiny configuration, and a trainer that runs inside a test."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis.internal.conjecture import providers

from esper.configs import (
    CheckpointConfig,
    DatasetConfig,
    LoggingConfig,
    ModelConfig,
    MorphogeneticConfig,
    OptimizationConfig,
    TolariaConfig,
    TrackingConfig,
)
from esper.oona.redis import RedisBus
from esper.tolaria import TolariaTrainer
from tests.forked import ForkedPython
from tests.oona.server import PASSWORD, RedisServer

hypothesis.settings.register_profile("esper", deadline=None)  # an example may take long on a busy machine
hypothesis.settings.load_profile("esper")
# It would also draw constants of the modules that are imported: other examples, after other tests, than CI drew before.
providers.is_local_module_file = lambda path: False


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))  # not the user's: runs note addresses there
    os.environ["OMP_NUM_THREADS"] = "1"  # in processes that tests start; on busy cores, threads wait for each other


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    ForkedPython.end_all()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tiny tensors; and pytest-xdist uses the other core


STACK = {
    "morphogenetic__policy": "stack",
    "morphogenetic__blueprint_categories": ["copy"],
    "morphogenetic__max_adaptations_per_epoch": 8,
    "morphogenetic__adaptation_cooldown": 0,
    "morphogenetic__always_score": False,
    "morphogenetic__judged": False,
}
"""Changes of `tiny_config`: the network doubles by copies of its blocks, which nothing judges."""


def tiny_config(**changes: Any) -> TolariaConfig:
    """Three epochs of six steps on 16 synthetic classes' worth of 8x8 images; grows one module after epoch 1.

    Keyword arguments are `group__field=value` or `field=value`.
    """
    config = TolariaConfig(
        model=ModelConfig(name="resnet_small", widths=[4, 8], depths=[1, 1], target_layers=["layer1", "layer2"]),
        dataset=DatasetConfig(name="synthetic", image_size=8, num_examples=320, batch_size=32, val_split=0.4),
        optimization=OptimizationConfig(max_epochs=3, learning_rate=0.05, warmup_epochs=0.5, decay_fraction=0.3),
        morphogenetic=MorphogeneticConfig(
            policy="schedule", schedule_at=[0.3], holding_epochs=1, adaptation_cooldown=1, newborn_warmup_steps=2
        ),
        logging=LoggingConfig(log_interval=2),
        checkpoint=CheckpointConfig(),
        tracking=TrackingConfig(name="none"),
        experiment_name="tiny",
        device="cpu",
    )
    for key, value in changes.items():
        group, _, field = key.rpartition("__")
        if group:
            config = dataclasses.replace(
                config, **{group: dataclasses.replace(getattr(config, group), **{field: value})}
            )
        else:
            config = dataclasses.replace(config, **{field: value})
    return config


def result_of(**changes: Any) -> dict[str, Any]:
    """The result of a finished run, see `contracts.events.RunEnded`."""
    macs = ("train", "growth", "discarded", "forward", "backward", "scoring", "forking", "incubation", "judging")
    return {
        "test_loss": 0.6,
        "test_accuracy": 0.7,
        "val_loss": 0.6,
        "val_accuracy": 0.7,
        "epochs": 2,
        "seconds": 4.0,
        "num_parameters_before": 100,
        "num_parameters": 120,
        "peak_parameters": 130,
        "num_macs_before": 10,
        "num_macs": 12,
        "num_grown": 1,
        "num_kept": 1,
        "total_macs": 10,
        **{f"{name}_macs": 9 if name == "train" else 1 for name in macs},
        **changes,
    }


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "tiny" / "run"


@pytest.fixture
def redis_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    """A server of the test's own, not yet started; this process knows the password."""
    monkeypatch.delenv("ESPER_REDIS_URL", raising=False)
    monkeypatch.delenv("ESPER_REDIS_USERNAME", raising=False)
    monkeypatch.setenv("ESPER_REDIS_PASSWORD", PASSWORD)
    server = RedisServer()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def bus(redis_server: RedisServer) -> Iterator[RedisBus]:
    """A bus on that server."""
    redis_server.start("--appendfsync", "no")
    with contextlib.closing(redis_server.bus()) as bus:
        yield bus


def journal_of(run_dir: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The events in a run's journal, all or those of a kind."""
    events = map(json.loads, (run_dir / "journal.jsonl").read_text().splitlines())
    return [event for event in events if kind in (None, event["kind"])]


def use(config: TolariaConfig, run_dir: Path, body: Callable[[TolariaTrainer], Awaitable[Any]]) -> Any:
    """Run a coroutine with an initialised trainer, and shut that down."""

    async def go() -> Any:
        trainer = TolariaTrainer(config, run_dir=run_dir)
        try:
            await trainer.initialize()
            return await body(trainer)
        finally:
            await trainer.shutdown()

    return asyncio.run(go())
