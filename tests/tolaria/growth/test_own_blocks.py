"""Growth of networks of one's own whose blocks hold what ours do not: number formats, complex and whole numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper import plugins, tezzeret
from esper.configs import ModelConfig
from esper.contracts.recipe import Graft
from esper.data import DataSpec
from esper.errors import DivergenceError
from esper.kasmina import wrap
from esper.tolaria import TolariaTrainer
from esper.tolaria.metrics import require_finite
from esper.urza import Blueprint, Kernel
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
        y = torch.fft.ifft2(torch.fft.fft2(self.conv(x).float()) * self.filter).real.to(x.dtype)
        return x + (self.norm(y)[:, self.order] * self.mask).relu()


class Net(nn.Module):
    def __init__(self, spec: DataSpec, dtype: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(spec.inputs[0], WIDTH, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block()).to(getattr(torch, dtype))
        for block in self.blocks:  # not before: `to` would make it real
            block.filter = nn.Parameter(torch.ones(WIDTH, 1, 1, dtype=torch.complex64))
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
        assert copied.filter.requires_grad


class Filter(Kernel):
    """Multiplies frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH, 1, 1, dtype=torch.complex64))
        self.gain = nn.Parameter(torch.ones(WIDTH, 1, 1))

    @property
    def output_scale(self) -> nn.Parameter:
        return self.gain

    def forward(self, x: Tensor) -> Tensor:
        y = torch.fft.ifft2(torch.fft.fft2(x.float()) * self.weight).real
        return self.gain * y.to(x.dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_complex_weights_of_a_blueprint_of_ones_own_stay_complex_and_are_checked(dtype: str) -> None:
    plugins.offer(
        "blueprint",
        "filter",
        Blueprint(
            blueprint_id="filter",
            category="residual",
            complexity=1,
            kinds=frozenset({"after"}),
            build=lambda *_: Filter(),
            summary="",
            source="",
        ),
    )
    host = Net(DataSpec(inputs=(3, 8, 8), num_outputs=2), dtype)
    model = wrap(host, ["blocks"], input_shape=(3, 8, 8), site_kinds=["after"])
    graft = Graft(graft_id=1, site="blocks.1:after", blueprint_id="filter", init_seed=0, init_gain=1.0, born_step=1)
    model.graft(graft)
    kernel = model.slot(graft.site).kernel(graft)
    assert kernel.weight.dtype is torch.complex64
    assert kernel.gain.dtype is getattr(torch, dtype)
    x = torch.randn(2, WIDTH, 8, 8, dtype=kernel.gain.dtype)
    assert not tezzeret.check_kernel(kernel, x, (WIDTH, 8, 8)).failed


def test_a_complex_weight_that_is_not_finite_stops_the_run(run_dir: Path) -> None:
    plugins.offer("model", "Net", Net)
    model = ModelConfig(source="plugin", name="Net", options={"dtype": "float32"}, target_layers=["blocks"])

    async def body(trainer: TolariaTrainer) -> None:
        require_finite(trainer.run)
        with torch.no_grad():
            trainer.run.model.host.blocks[0].filter.fill_(torch.nan)
        with pytest.raises(DivergenceError):
            require_finite(trainer.run)

    use(tiny_config(model=model), run_dir, body)
