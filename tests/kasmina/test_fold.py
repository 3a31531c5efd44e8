"""Folding: the plain network computes what the grown one does, and has the host's names and cost."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from esper import costs
from esper.contracts.recipe import Graft
from esper.errors import SurgeryError
from esper.kasmina import MorphableModel, fold, surgery, unwrap, wrap
from esper.models.residual import BasicBlock
from esper.models.resnet_small import SmallResNet
from esper.tolaria import TolariaTrainer
from esper.tolaria.checkpoints import files as checkpoint
from esper.tolaria.checkpoints.contents import snapshot
from esper.urza.residual import ResidualBlock
from tests.conftest import tiny_config, use

KINDS = ["beside", "after", "parallel", "width"]
SHAPE = (3, 8, 8)


def wrapped() -> MorphableModel:
    torch.manual_seed(0)
    host = SmallResNet(widths=[8, 16], depths=[1, 2], in_channels=3, num_classes=5)
    return wrap(host, ["layer1", "layer2"], 99, input_shape=SHAPE, site_kinds=KINDS)


def images(number: int = 24) -> Tensor:
    return torch.randn(number, *SHAPE, generator=torch.Generator().manual_seed(number))


def grow(model: MorphableModel, *grafts: tuple[str, str], kept: bool = True) -> MorphableModel:
    """Attach kernels and keep them; statistics and weights move away from where they started."""
    for number, (site, blueprint) in enumerate(grafts, start=len(model.recipe) + 1):
        graft = Graft(graft_id=number, site=site, blueprint_id=blueprint, init_seed=number, init_gain=0.5, born_step=0)
        surgery.germinate(model, graft, images=images(), epoch=0)
        slot = model.slot(site)
        surgery.begin_blending(slot, step=0, epoch=0)
        surgery.set_alpha(slot, step=0, blending_steps=0)
        surgery.hold(slot, epoch=0)
        if kept:
            surgery.fossilize(slot, epoch=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    labels = torch.arange(24) % 5
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(images() * 2 + 1), labels).backward()
        optimizer.step()
    return model.eval()


def assert_close(a: nn.Module, b: nn.Module) -> None:
    with torch.no_grad():
        expected = b(images(7))
        assert (a(images(7)) - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


FOLDS = ["fold_1x1", "fold_asymmetric", "fold_3x3"]


@pytest.mark.parametrize("blueprint", FOLDS)
@pytest.mark.parametrize("conv", ["layer1.0.conv1", "layer2.0.conv1", "layer2.1.conv2"])
def test_a_parallel_kernel_folds_exactly_into_a_network_of_the_hosts_names_and_cost(blueprint: str, conv: str) -> None:
    model = grow(wrapped(), (f"{conv}:parallel", blueprint))
    folded = fold(model)
    assert_close(folded, model)
    assert costs.count(folded, SHAPE) == costs.count(wrapped().host, SHAPE)
    wrapped().host.load_state_dict(folded.state_dict())
    assert not folded.training


def test_a_parallel_kernel_folds_into_a_convolution_whose_weight_another_shares() -> None:
    host = wrapped().host
    host.layer2[1].conv1.weight = host.layer2[1].conv2.weight
    model = wrap(host, ["layer2"], 99, input_shape=SHAPE, site_kinds=KINDS)
    grow(model, ("layer2.1.conv1:parallel", "fold_3x3"))
    assert_close(fold(model), model)


@pytest.mark.parametrize("of", ["conv1", "conv2"])
def test_nothing_is_folded_into_a_layer_whose_weight_is_computed(of: str) -> None:
    host = wrapped().host
    nn.utils.spectral_norm(host.layer2[1].get_submodule(of))
    sites = [slot.site.name for slot in wrap(host, ["layer2"], 99, input_shape=SHAPE, site_kinds=KINDS).all_slots()]
    assert f"layer2.1.{of}:parallel" not in sites
    assert "layer2.1:width" not in sites
    assert "layer2.0.conv2:parallel" in sites
    rows = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    assert wrap(rows, ["0"], input_shape=(4,), site_kinds=["width"]).all_slots()
    nn.utils.spectral_norm(rows[2 if of == "conv2" else 0])
    assert not wrap(rows, ["0"], input_shape=(4,), site_kinds=["width"]).all_slots()


def test_a_kernel_beside_a_norm_whose_gain_is_zero_folds_too() -> None:
    model = grow(wrapped(), ("layer1.0.conv2:parallel", "fold_3x3"))
    nn.init.zeros_(model.host.get_parameter("layer1.0.bn2.weight"))
    assert_close(fold(model), model)


def test_new_channels_are_concatenated_to_those_of_the_block() -> None:
    model = grow(wrapped(), ("layer2.0:width", "widen"))
    folded = fold(model)
    assert_close(folded, model)
    assert list(folded.state_dict()) == list(wrapped().host.state_dict())
    assert folded.get_parameter("layer2.0.conv1.weight").shape == (24, 8, 3, 3)
    assert folded.get_parameter("layer2.0.conv2.weight").shape == (16, 24, 3, 3)
    # All but the gain of 16 numbers, which is part of the new weights now.
    assert costs.count(folded, SHAPE).num_parameters == costs.count(model.host, SHAPE).num_parameters + 8 * (
        9 * 8 + 2 + 9 * 16
    )


def test_width_and_parallel_kernels_at_the_same_layers_fold_together_in_any_order() -> None:
    both = [
        ("layer2.0.conv2:parallel", "fold_3x3"),
        ("layer2.0:width", "widen"),
        ("layer2.0.conv1:parallel", "fold_1x1"),
    ]
    for grafts in (both, both[::-1]):
        model = grow(wrapped(), *grafts, *grafts[:2])  # two kernels in a slot
        assert_close(fold(model), model)


def test_residual_blocks_become_blocks_of_their_stage() -> None:
    model = grow(
        wrapped(),
        ("layer2.0:after", "residual_block"),
        ("layer2.1:after", "residual_block"),
        ("layer2.0:after", "residual_block"),
    )
    folded = fold(model)
    assert_close(folded, model)
    plain = SmallResNet(widths=[8, 16], depths=[1, 5], in_channels=3, num_classes=5).eval()
    plain.load_state_dict(folded.state_dict())
    assert_close(plain, model)


def test_kernels_that_cannot_be_folded_are_kept_as_submodules() -> None:
    model = grow(
        wrapped(),
        ("layer2.0:after", "squeeze_excite"),
        ("layer2.0:beside", "conv1x1"),
        ("layer2.0:after", "residual_block"),
        ("layer2.0:after", "conv1x1"),
        ("layer2.0.conv1:parallel", "fold_1x1"),
        ("layer2.1:after", "layer_scale"),
    )
    folded = fold(model)
    assert_close(folded, model)
    assert not any(isinstance(module, ResidualBlock) for module in folded.modules())
    assert len(folded.get_submodule("layer2")._modules) == 3


def test_a_residual_block_outside_a_sequential_stays_a_kernel() -> None:
    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
            self.block.__class__ = type("Block", (nn.Sequential,), {})
            self.head = nn.ModuleDict({"block": wrapped().host.get_submodule("layer1.0")})

        def forward(self, x: Tensor) -> Tensor:
            return self.head["block"](self.block(x)).mean((2, 3))  # type: ignore[no-any-return]

    model = wrap(Host(), ["head.block"], input_shape=SHAPE)
    grow(model, ("head.block:after", "residual_block"))
    assert_close(fold(model), model)
    assert any(isinstance(module, ResidualBlock) for module in fold(model).modules())


class Counted(nn.Module):
    """A host that knows how many blocks it has."""

    def __init__(self, container: str, *, is_strict: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        self.is_strict, self.scale = is_strict, scale
        blocks = [BasicBlock(5, 5) for _ in range(3)]
        self.stem = nn.Conv2d(3, 5, 1)
        self.blocks = nn.Sequential(*blocks) if container == "Sequential" else nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        assert not self.is_strict or len(self.blocks) == 3
        for i in range(3):
            x = self.blocks[i](x)
        return self.scale * x.mean((2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize("container", ["Sequential", "ModuleList"])
def test_blocks_are_not_inserted_where_the_host_would_not_run_them(container: str) -> None:
    torch.manual_seed(0)
    model = wrap(Counted(container), ["blocks"], 9, input_shape=SHAPE, site_kinds=["after"])
    grow(model, ("blocks.1:after", "residual_block"))
    folded = fold(model)
    assert_close(folded, model)
    # As when an export is loaded: at first, both ways of folding compute the same.
    new = wrap(Counted(container), ["blocks"], 9, input_shape=SHAPE, site_kinds=["after"])
    new.replay(model.recipe)
    for block in new.modules():
        if isinstance(block, BasicBlock | ResidualBlock):
            nn.init.zeros_(block.bn2.weight)
    loaded = fold(new, names=folded.state_dict())
    loaded.load_state_dict(folded.state_dict())
    assert_close(loaded, model)


@pytest.mark.parametrize("host", [{"is_strict": True}, {"scale": 1e-4}])
def test_a_host_that_counts_its_blocks_may_raise_or_have_tiny_outputs(host: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = wrap(Counted("Sequential", **host), ["blocks"], 9, input_shape=SHAPE, site_kinds=["after"])
    grow(model, ("blocks.1:after", "residual_block"))
    assert [type(block) is BasicBlock for block in fold(model).blocks] == [True, False, True]


def test_a_network_with_a_live_kernel_is_not_folded() -> None:
    model = grow(wrapped(), ("layer2.0:width", "widen"), kept=False)
    with pytest.raises(SurgeryError, match=r"site 'layer2.0:width' is holding: a network can be folded once"):
        fold(model)


def test_folding_does_not_change_the_grown_network() -> None:
    model = grow(wrapped(), ("layer2.0:width", "widen"), ("layer1.0.conv1:parallel", "fold_3x3")).train()
    before = copy.deepcopy(model.state_dict())
    fold(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(model.host.get_submodule("layer1.0.bn1")._forward_hooks) == 1


@pytest.mark.parametrize("kept", [False, True])
def test_an_unwrapped_network_holds_kernels_inside_blocks_without_hooks_and_can_be_copied_and_saved(kept: bool) -> None:
    sites = [("layer2.0:width", "widen"), ("layer2.0.conv1:parallel", "fold_3x3"), ("layer2.0:after", "residual_block"),
             ("layer2.0.conv2:parallel", "fold_1x1")]  # fmt: skip
    model = grow(wrapped(), *sites, kept=kept)
    plain = unwrap(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain.modules())
    expected = model(images(7))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    file = io.BytesIO()
    torch.save(copy.deepcopy(plain), file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(images(7)), expected)


def test_a_block_with_a_kernel_does_not_take_over_its_blocks_own_protocols() -> None:
    model = grow(wrapped(), ("layer1.0:after", "residual_block"), kept=True)
    block = model.host.get_submodule("layer1.0")
    block.note, type(block).__array__ = "kept", lambda self: None  # type: ignore[attr-defined,method-assign]
    try:
        grown = unwrap(model).get_submodule("layer1.0")
        assert grown is not block
        assert grown.note == "kept"
        assert not hasattr(grown, "__array__")
    finally:
        del type(block).__array__  # type: ignore[attr-defined]


def test_a_residual_block_is_the_identity_at_gain_zero_and_exact_once_kept() -> None:
    model = wrapped().eval()
    logits = model(images())
    graft = Graft(
        graft_id=1, site="layer1.0:after", blueprint_id="residual_block", init_seed=1, init_gain=0.0, born_step=0
    )
    surgery.germinate(model, graft, images=images(), epoch=0)
    slot = model.slot(graft.site)
    surgery.begin_blending(slot, step=0, epoch=0)
    surgery.set_alpha(slot, step=0, blending_steps=0)
    assert torch.equal(model(images()), logits)
    surgery.hold(slot, epoch=0)
    surgery.fossilize(slot, epoch=0)
    assert torch.equal(model(images()), logits)


def test_resnet10_with_four_residual_blocks_is_torchvisions_resnet18() -> None:
    from esper.configs import ModelConfig
    from esper.data import DataSpec
    from esper.models import build_host

    torch.manual_seed(0)
    small = ModelConfig(name="resnet10")
    host = build_host(small, DataSpec(inputs=(3, 8, 8), num_outputs=5))
    model = wrap(host, [f"layer{i}" for i in range(1, 5)], input_shape=SHAPE)
    model = grow(model, *((f"layer{i}.0:after", "residual_block") for i in range(1, 5)))
    plain = resnet18(num_classes=5)
    plain.conv1, plain.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    plain.load_state_dict(fold(model).state_dict())
    assert_close(plain.eval(), model)


@pytest.mark.parametrize(("kind", "blueprint"), [("parallel", "fold_asymmetric"), ("width", "widen")])
def test_a_run_that_grows_inside_blocks_resumes_with_the_same_bits(
    run_dir: Path, tmp_path: Path, kind: str, blueprint: str
) -> None:
    config = tiny_config(model__site_kinds=[kind], morphogenetic__blueprint=blueprint, morphogenetic__blending_steps=4)

    async def to_the_end(trainer: TolariaTrainer) -> dict[str, Tensor]:
        await trainer.train()
        saved = snapshot(trainer.run)
        assert trainer.run.life.num_germinated == 1
        return {**saved.model, **saved.optimizer}

    straight = use(config, tmp_path / "straight" / "run", to_the_end)
    step_after_birth = 8

    async def stop(trainer: TolariaTrainer) -> list[Graft]:
        step = trainer.run.step

        class Stopping(type(step)):  # type: ignore[misc]
            def forward_backward_update(self, *, epoch: int, index: int, step: int) -> None:
                super().forward_backward_update(epoch=epoch, index=index, step=step)
                if step + 1 == step_after_birth:
                    trainer.request_stop("test")

        step.__class__ = Stopping
        await trainer.train()
        return trainer.run.model.recipe

    (born,) = use(config, run_dir, stop)
    assert born.blueprint_id == blueprint
    assert checkpoint.find_checkpoints(run_dir / "checkpoints")[0].name == "step-00000008"
    resumed = use(config, run_dir, to_the_end)
    assert resumed.keys() == straight.keys()
    assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []
