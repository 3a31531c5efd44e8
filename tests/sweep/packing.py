"""Members of a sweep, trained alone and side by side in one process."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from esper import plugins
from esper.configs import ModelConfig
from esper.data import DataSpec
from esper.sweep.job import MemberJob
from esper.sweep.manifest import Member, freeze
from esper.tolaria.checkpoints import files
from tests.conftest import tiny_config


class Dropped(nn.Module):
    """A network that draws from the global generator in every step, and whose blocks may grow."""

    def __init__(self, spec: DataSpec, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(spec.inputs[0], width, 3, padding=1)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, spec.num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        output = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        assert isinstance(output, Tensor)
        return output


class Block(nn.Module):
    """Convolution and dropout around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.drop(self.norm(self.conv(x)).relu())
        assert isinstance(y, Tensor)
        return y


DROPPED = {"model": ModelConfig(source="plugin", name="dropped", target_layers=["blocks"])}


def member(sweep_dir: Path, name: str, *, cwd: Path | None = None, **changes: Any) -> Member:
    """A member that is ready to run."""
    sweep_dir.mkdir(exist_ok=True)
    plugins.offer("model", "dropped", Dropped)
    one = Member(sweep_dir=sweep_dir, name=name, overrides=(name,), cwd=str(cwd or sweep_dir), siblings={})
    freeze(one, tiny_config(**changes))
    return one


def alone(one: Member) -> None:
    """Run a member in its own job."""
    with contextlib.suppress(SystemExit):
        MemberJob(one.folder)()


def weights(one: Member) -> dict[str, Tensor]:
    """Every tensor of the last checkpoint: weights, optimizer, random states."""
    saved = files.load(files.find_checkpoints(one.run_dir / "checkpoints")[0])
    return {**saved.model, **saved.optimizer}
