"""A trained run that the tests of this folder share, and its test split as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor

from esper.cli import main
from esper.configs import TolariaConfig
from esper.data import ImageSet
from esper.tolaria import TolariaTrainer
from tests.conftest import tiny_config, use


class Seen(NamedTuple):
    """What the trainer's evaluation saw of the test split, and the run's result."""

    run_dir: Path
    result: dict[str, Any]
    test: ImageSet
    outputs: Tensor
    targets: Tensor


def command(*arguments: object) -> int:
    """The exit code of `esper` with these arguments."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def train(config: TolariaConfig, run_dir: Path) -> Seen:
    """Train a network of images or rows."""

    async def body(trainer: TolariaTrainer) -> Seen:
        await trainer.train()
        run, parts = trainer.run, trainer.run.parts
        assert trainer.result is not None
        with torch.no_grad():
            outputs = [
                (run.model.eval()(inputs), targets) for inputs, targets in parts.evaluation_batches(parts.splits.test)
            ]
        return Seen(
            run_dir=run_dir,
            result=trainer.result,
            test=parts.splits.test,  # type: ignore[arg-type]
            outputs=torch.cat([output for output, _ in outputs]),
            targets=torch.cat([target for _, target in outputs]),
        )

    seen = use(config, run_dir, body)
    assert isinstance(seen, Seen)
    return seen


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """A run that grew a squeeze-and-excitation, which cannot be folded."""
    torch.set_num_threads(1)
    config = tiny_config(
        morphogenetic__judged=False, morphogenetic__blueprint="squeeze_excite", model__site_kinds=["after"]
    )
    return train(config, tmp_path_factory.mktemp("runs") / "tiny" / "run")


@pytest.fixture(scope="session")
def pictures(trained: Seen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its test split: a folder for each class."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, (values, label) in enumerate(zip(trained.test.images, trained.targets.tolist(), strict=True)):
        path = folder / f"stripes{label}" / f"{i:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(values.permute(1, 2, 0).numpy()).save(path)
    return folder
