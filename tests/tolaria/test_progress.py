import asyncio
from pathlib import Path

import pytest

from esper.contracts.events import EpochEnded
from esper.contracts.progress import Progress
from esper.tolaria import TolariaTrainer, announce
from esper.tracking import read
from tests.conftest import tiny_config, use


def test_progress_tells_every_part_of_a_training_and_the_loss_after_the_first_step(run_dir: Path):
    told: list[Progress] = []
    trainer = TolariaTrainer(tiny_config(), run_dir=run_dir, on_progress=told.append)
    history = asyncio.run(trained(trainer))
    assert told[0].doing == "reading the data"
    assert list(dict.fromkeys(progress.doing for progress in told))[1:] == [
        "starting",
        "training",
        "validating",
        "growing",
        "testing",
    ]
    first = next(progress for progress in told if progress.loss is not None)
    assert (first.step, first.total_steps) == (1, 18)
    assert first.metrics.keys() == {"accuracy"}
    assert 0.5 < first.loss / history[0].train_loss < 2  # of one step, and the mean of all
    assert trainer.training_state.global_step == 18


def test_a_display_that_fails_does_not_stop_the_training(run_dir: Path):
    def fail(progress: Progress) -> None:
        raise RuntimeError("the window is closed")

    trainer = TolariaTrainer(tiny_config(), run_dir=run_dir, on_progress=fail)
    asyncio.run(trained(trainer))
    assert trainer.result is not None


async def trained(trainer: TolariaTrainer) -> list[EpochEnded]:
    await trainer.initialize()
    try:
        return await trainer.train()
    finally:
        await trainer.shutdown()


@pytest.mark.parametrize(("macs_of_an_hour", "is_long"), [(2e14, False), (1e6, True)])
def test_a_training_that_would_take_a_cpu_hours_names_a_recipe_that_suits_one(
    macs_of_an_hour: float, is_long: bool, run_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    async def nothing(_: TolariaTrainer) -> None:
        pass

    monkeypatch.setattr(announce, "_CPU_MACS", macs_of_an_hour)
    use(tiny_config(), run_dir, nothing)
    notices = [event["message"] for event in read(run_dir / "journal.jsonl") if event["kind"] == "notice"]
    advice = [message for message in notices if message.startswith("a recipe for a GPU")]
    suited = [message.partition("suits a CPU: ")[2] for message in advice]
    assert suited == is_long * ["esper-train experiment=quickstart"]
