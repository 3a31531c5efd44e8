"""Growth of networks of one's own whose blocks hold what ours do not: number formats, whole numbers, constants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper import plugins
from esper.configs import ModelConfig
from esper.data import DataSpec
from esper.tolaria import TolariaTrainer
from tests.conftest import STACK, tiny_config, use

WIDTH = 4


class Block(nn.Module):
    """Adds its channels in another order, some of them not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)
        self.mask = nn.Parameter((torch.arange(WIDTH) % 2).float().view(WIDTH, 1, 1), requires_grad=False)
        self.order = nn.Parameter(torch.arange(WIDTH).flip(0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.norm(self.conv(x))[:, self.order] * self.mask).relu()


class Net(nn.Module):
    def __init__(self, spec: DataSpec, dtype: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(spec.inputs[0], WIDTH, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block()).to(getattr(torch, dtype))
        self.head = nn.Linear(WIDTH, spec.num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.blocks[0].conv.weight.dtype
        return self.head(self.blocks(self.stem(x).to(dtype)).mean((2, 3)).float())  # type: ignore[no-any-return]


def grow(run_dir: Path, dtype: str, **changes: Any) -> tuple[nn.Module, list[nn.Module]]:
    """Train and grow; the host, and what grew in it."""
    plugins.offer("model", "Net", Net)
    model = ModelConfig(
        source="plugin",
        name="Net",
        options={"dtype": dtype},
        target_layers=["blocks"],
        site_kinds=["after"],
        freeze=["blocks.*.norm.*"],
    )
    config = tiny_config(model=model, **changes)

    async def body(trainer: TolariaTrainer) -> tuple[nn.Module, list[nn.Module]]:
        await trainer.train()
        grown = trainer.run.model
        return grown.host, [grown.slot(graft.site).kernel(graft) for graft in grown.recipe]

    return use(config, run_dir, body)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_modules_have_the_number_format_of_the_block_they_grow_behind(run_dir: Path, dtype: str) -> None:
    host, (kernel,) = grow(run_dir, dtype, morphogenetic__judged=False)
    assert {p.dtype for p in kernel.parameters()} == {getattr(torch, dtype)}
    assert host.stem.weight.dtype is torch.float32


def test_copies_train_what_a_setting_froze_but_not_what_the_block_holds_constant(run_dir: Path) -> None:
    host, (kernel,) = grow(run_dir, "float32", **STACK, morphogenetic__copy_init="trained")
    for source, copied in zip(host.blocks, kernel.blocks, strict=True):
        assert torch.equal(copied.mask, source.mask)
        assert torch.equal(copied.order, source.order)
        assert not torch.equal(copied.conv.weight, source.conv.weight)
        assert not torch.equal(copied.norm.weight, source.norm.weight)
