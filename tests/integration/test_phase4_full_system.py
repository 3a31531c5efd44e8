"""The specification's integration tests (§3), against the real system."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from esper.configs import (
    CheckpointConfig,
    DatasetConfig,
    LoggingConfig,
    ModelConfig,
    MorphogeneticConfig,
    OptimizationConfig,
    TolariaConfig,
)
from esper.configs.load import load_config
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.events import EpochEnded, Event
from esper.contracts.health import HealthSignal
from esper.contracts.lifecycle import SeedLifecycleState
from esper.tolaria import TolariaService, TolariaTrainer
from tests.conftest import journal_of, tiny_config, use


class TestFullSystemIntegration:
    def test_basic_training_loop(self, run_dir: Path) -> None:
        metrics = use(tiny_config(morphogenetic__enable_tamiyo=False), run_dir, lambda trainer: trainer.train_epoch())
        assert metrics["loss"] > 0
        assert 0.0 <= metrics["accuracy"] <= 1.0

    def test_morphogenetic_training_consults_tamiyo_at_the_end_of_an_epoch(self, run_dir: Path) -> None:
        class Recording:
            def __init__(self) -> None:
                self.seen: list[HealthSignal] = []

            def decide(self, signals: Any) -> AdaptationDecision:
                self.seen = list(signals)
                return AdaptationDecision(should_adapt=True, target_layer="layer1", confidence=0.8, reasoning="asked")

        tamiyo = Recording()

        async def body(trainer: TolariaTrainer) -> None:
            trainer.run.growth.tamiyo = tamiyo
            await trainer.train_epoch()
            await trainer.handle_end_of_epoch()
            assert trainer.training_state.adaptations_this_epoch == 2

        use(tiny_config(), run_dir, body)
        assert [s.site for s in tamiyo.seen] == [
            "layer1.0:beside", "layer1.0:after", "layer2.0:beside", "layer2.0:after",
        ]  # fmt: skip
        assert all(s.score is not None and s.health is not None for s in tamiyo.seen)

    def test_a_complete_adaptation_cycle_from_detection_to_a_fossilized_module(self, run_dir: Path) -> None:
        # Real digits, and a host of eight channels: so thin that growing helps.
        config = tiny_config(
            dataset=DatasetConfig(name="digits", batch_size=64, val_split=0.4, crop_padding=1, horizontal_flip=False),
            model__widths=[8, 8],
            optimization__max_epochs=16,
            morphogenetic__policy="heuristic",
            morphogenetic__health_threshold=1.0,
            morphogenetic__holding_epochs=6,
            morphogenetic__max_adaptations_per_epoch=1,
            rng_seed=1,
        )

        async def body(trainer: TolariaTrainer) -> list[str]:
            await trainer.train()
            return [slot.state for slot in trainer.run.model.all_slots() if slot.kept_grafts]

        assert use(config, run_dir, body)
        states = [(line["site"], line["new"]) for line in journal_of(run_dir, "state")]
        kept = next(site for site, new in states if new == SeedLifecycleState.FOSSILIZED)
        mine = [new for site, new in states if site == kept]
        cycle = ["germinated", "training", "blending", "holding", "fossilized"]
        assert cycle == mine[mine.index("fossilized") - 4 : mine.index("fossilized") + 1]
        judged = journal_of(run_dir, "judgement")
        verdict = next(line for line in judged if line["site"] == kept and line["kept"])
        assert verdict["lower_bound"] > verdict["threshold"]

    def test_service_lifecycle_management(self, run_dir: Path) -> None:
        async def go() -> None:
            service = TolariaService(tiny_config(optimization__max_epochs=500), run_dir=run_dir)
            assert (await service.health_check())["status"] == "stopped"
            await service.start()
            assert service.running
            assert service.trainer is not None
            health = await service.health_check()
            assert health["status"] == "healthy"
            await service.stop()
            assert not service.running
            await service.stop()
            assert (await service.health_check())["status"] == "stopped"

        asyncio.run(go())
        assert json.loads((run_dir / "status.json").read_text())["status"] == "interrupted"

    def test_health_is_answered_within_two_seconds_at_any_time(self, run_dir: Path) -> None:
        was_healthy = threading.Event()

        def listen(event: Event) -> None:
            if isinstance(event, EpochEnded):
                was_healthy.wait(60)

        async def go() -> list[float]:
            service = TolariaService(tiny_config(optimization__max_epochs=4), run_dir=run_dir, listeners=[listen])
            training = asyncio.create_task(service.run_training())
            waits, seen = [], set()
            while not training.done():
                # While others have the CPU, or it is suspended, the process computes nothing.
                asked, computed = time.monotonic(), time.process_time()
                seen.add((await service.health_check())["status"])
                if "healthy" in seen:
                    was_healthy.set()
                await asyncio.sleep(0.01 if "starting" in seen else 0)
                waits.append(min(time.monotonic() - asked, time.process_time() - computed))
            await training
            await service.stop()
            assert {"starting", "healthy"} <= seen
            return waits

        assert max(asyncio.run(go())) < 2.0

    def test_a_signal_stops_the_training_at_a_step_boundary(self, run_dir: Path) -> None:
        async def go() -> int | None:
            service = TolariaService(tiny_config(optimization__max_epochs=500), run_dir=run_dir)
            service.setup_signal_handlers()
            await service.start()
            await asyncio.sleep(0.3)
            signal.raise_signal(signal.SIGTERM)
            await service.run_training()
            await service.stop()
            return service.signal_number

        assert asyncio.run(go()) == signal.SIGTERM
        status = json.loads((run_dir / "status.json").read_text())
        assert (status["status"], status["reason"]) == ("interrupted", "SIGTERM")
        assert list((run_dir / "checkpoints").glob("step-*"))

    def test_checkpoint_save_and_resume(self, run_dir: Path, tmp_path: Path) -> None:
        async def save(trainer: TolariaTrainer) -> str:
            await trainer.train_epoch()
            return trainer.save_checkpoint(epoch=1, is_best=True)

        saved = use(tiny_config(), run_dir, save)
        assert Path(saved).exists()

        async def resume(trainer: TolariaTrainer) -> bool:
            assert trainer.load_checkpoint(saved)
            return trainer.training_state.epoch == 1

        assert use(tiny_config(), tmp_path / "second", resume)

    def test_error_handling_and_recovery(self, run_dir: Path) -> None:
        async def nothing(_: TolariaTrainer) -> None:
            raise AssertionError("it initialised")

        with pytest.raises(ValueError, match=r"model.name=nonexistent_model: allowed are resnet10, resnet18"):
            use(tiny_config(model__name="nonexistent_model"), run_dir, nothing)
        assert not run_dir.exists()
        use(tiny_config(optimization__max_epochs=1), run_dir, lambda trainer: trainer.train())

    def test_configuration_validation(self, tmp_path: Path) -> None:
        assert TolariaConfig().model.name == "resnet18"
        config = TolariaConfig(
            model=ModelConfig(name="resnet18", num_classes=10),
            dataset=DatasetConfig(name="cifar10", batch_size=32),
            optimization=OptimizationConfig(max_epochs=2, learning_rate=1e-3),
            morphogenetic=MorphogeneticConfig(enable_tamiyo=False),
            logging=LoggingConfig(log_dir=str(tmp_path / "logs")),
            checkpoint=CheckpointConfig(checkpoint_dir=str(tmp_path / "checkpoints")),
        )
        assert config.dataset.batch_size == 32
        assert list(tmp_path.iterdir()) == []  # constructing a configuration makes nothing


class TestMainEntrypointIntegration:
    def test_config_loading_from_file(self, tmp_path: Path) -> None:
        file = tmp_path / "test_config.yaml"
        file.write_text(
            "experiment_name: test_experiment\nmodel: {name: resnet18, num_classes: 10}\n"
            "dataset: {name: synthetic, batch_size: 32}\noptimization: {max_epochs: 2}\n"
        )
        config = load_config(str(file), TolariaConfig)
        assert config.experiment_name == "test_experiment"
        assert config.model.name == "resnet18"

    def test_a_frozen_configuration_of_a_run_can_be_loaded(self, run_dir: Path) -> None:
        config = tiny_config(optimization__max_epochs=1, dataset__data_dir=str(run_dir / "data"))
        use(config, run_dir, lambda trainer: trainer.train())
        assert load_config(str(run_dir / "config.yaml"), TolariaConfig) == config
