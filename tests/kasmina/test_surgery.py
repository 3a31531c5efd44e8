"""Every growth operation: output unchanged at birth, the host untouched, and nothing left behind when it fails."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from esper.contracts.lifecycle import SeedLifecycleState as S
from esper.contracts.recipe import Graft
from esper.errors import ConfigError, SurgeryError
from esper.kasmina import MorphableModel, surgery, unwrap, wrap


class Host(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        down = nn.Sequential(nn.Conv2d(4, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6))
        self.layer1 = nn.Sequential(BasicBlock(4, 4))
        self.layer2 = nn.Sequential(BasicBlock(4, 6, stride=2, downsample=down))
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))  # type: ignore[no-any-return]


def grown(site: str = "layer2.0:beside", blueprint: str = "basic_block", graft_id: int = 1) -> Graft:
    return Graft(graft_id=graft_id, site=site, blueprint_id=blueprint, init_seed=7, init_gain=0.5, born_step=0)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> MorphableModel:
    torch.manual_seed(0)
    return wrapped()


def wrapped() -> MorphableModel:
    kinds = ["beside", "after", "parallel", "width"]
    return wrap(Host(), ["layer1", "layer2"], 9, input_shape=(3, 8, 8), max_kernels_per_seed=2, site_kinds=kinds)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def hold(model: MorphableModel, site: str) -> None:
    slot = model.slot(site)
    surgery.begin_blending(slot, step=0, epoch=1)
    surgery.set_alpha(slot, step=0, blending_steps=0)
    surgery.hold(slot, epoch=1)


def test_a_dormant_model_runs_the_hosts_own_operations(model: MorphableModel, images: Tensor) -> None:
    assert torch.equal(model(images), model.host(images))
    assert not any(module._forward_hooks for module in model.modules())


def test_wrapping_keeps_the_hosts_parameter_names(model: MorphableModel) -> None:
    assert {f"host.{name}" for name in Host().state_dict()} <= set(model.state_dict())
    assert list(unwrap(model).state_dict()) == list(Host().state_dict())


PLACES = [
    ("layer1.0:beside", "basic_block"),
    ("layer1.0:after", "basic_block"),
    ("layer2.0:beside", "basic_block"),
    ("layer2.0:after", "basic_block"),
    ("layer1.0:after", "residual_block"),
    ("layer2.0.conv1:parallel", "fold_asymmetric"),
    ("layer2.0.conv2:parallel", "fold_1x1"),
    ("layer1.0.conv2:parallel", "fold_3x3"),
    ("layer2.0:width", "widen"),
]


@pytest.mark.parametrize(("site", "blueprint"), PLACES)
def test_germinating_leaves_logits_and_host_bit_identical(
    model: MorphableModel, images: Tensor, site: str, blueprint: str
) -> None:
    host, logits = state(model.host), model.eval()(images)
    change = surgery.germinate(model, grown(site, blueprint), images=images, epoch=1)
    assert model.slot(site).state is S.TRAINING
    assert torch.equal(model(images), logits)
    assert same(state(model.host), host)
    assert {id(p) for _, p in change.added} == {id(p) for p in model.slots.parameters()}
    assert all(dict(model.named_parameters())[name] is p for name, p in change.added)


def test_a_broken_kernel_cannot_leak_before_it_blends(model: MorphableModel, images: Tensor) -> None:
    logits = model.eval()(images)
    surgery.germinate(model, grown(), images=images, epoch=1)
    with torch.no_grad():
        for p in model.slots.parameters():
            p.fill_(torch.nan)
    assert torch.equal(model(images), logits)


@pytest.mark.parametrize(("site", "blueprint"), PLACES)
def test_alpha_zero_changes_nothing_and_alpha_one_does(
    model: MorphableModel, images: Tensor, site: str, blueprint: str
) -> None:
    logits = model.eval()(images)
    surgery.germinate(model, grown(site, blueprint), images=images, epoch=1)
    slot = model.slot(site)
    surgery.begin_blending(slot, step=10, epoch=1)
    assert torch.equal(model(images), logits)
    assert surgery.set_alpha(slot, step=10, blending_steps=4) == 0.25
    assert not torch.equal(model(images), logits)
    with pytest.raises(SurgeryError, match="alpha_is_one"):
        surgery.hold(slot, epoch=1)
    assert surgery.set_alpha(slot, step=13, blending_steps=4) == 1.0
    surgery.hold(slot, epoch=1)
    assert slot.state is S.HOLDING


@pytest.mark.parametrize(("site", "blueprint"), PLACES)
def test_at_gain_zero_a_kernel_that_is_kept_changes_nothing(
    model: MorphableModel, images: Tensor, site: str, blueprint: str
) -> None:
    logits = model.eval()(images)
    graft = dataclasses.replace(grown(site, blueprint), init_gain=0.0)
    surgery.germinate(model, graft, images=images, epoch=1)
    hold(model, site)
    assert torch.equal(model(images), logits)
    surgery.fossilize(model.slot(site), epoch=2)
    assert torch.equal(model(images), logits)


@pytest.mark.parametrize(("site", "blueprint"), PLACES)
def test_blending_trains_the_host_through_the_kernel(
    model: MorphableModel, images: Tensor, site: str, blueprint: str
) -> None:
    surgery.germinate(model, grown(site, blueprint), images=images, epoch=1)
    hold(model, site)
    model.train()(images).square().sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert missing == []


@pytest.mark.parametrize(("site", "blueprint"), PLACES)
def test_culling_removes_the_branch_and_nothing_else(
    model: MorphableModel, images: Tensor, site: str, blueprint: str
) -> None:
    before, logits = state(model), model.eval()(images)
    change = surgery.germinate(model, grown(site, blueprint), images=images, epoch=1)
    hold(model, site)
    assert surgery.cull(model, site, epoch=2).removed == change.added
    assert same(state(model), before)
    assert torch.equal(model(images), logits)
    assert model.slot(site).state is S.EMBARGOED
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_kept_kernel_leaves_room_for_another_until_the_slot_is_full(model: MorphableModel, images: Tensor) -> None:
    slot = model.slot("layer1.0:after")
    for graft_id in (1, 2):
        surgery.germinate(model, grown(slot.site.name, "conv1x1", graft_id), images=images, epoch=1)
        hold(model, slot.site.name)
        logits = model.eval()(images)
        surgery.fossilize(slot, epoch=2)
        assert torch.equal(model(images), logits)
    assert slot.state is S.FOSSILIZED
    with pytest.raises(SurgeryError, match=r"failed dormant, room"):
        surgery.germinate(model, grown(slot.site.name, "conv1x1", 3), images=images, epoch=3)


def test_a_failed_check_leaves_the_model_as_it_was(model: MorphableModel, images: Tensor) -> None:
    before = state(model)
    with pytest.raises(SurgeryError, match="fails its check"):
        surgery.germinate(model, grown(), images=images * torch.nan, epoch=1)
    assert same(state(model), before)
    assert model.slot("layer2.0:beside").state is S.DORMANT
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("graft", "error", "message"),
    [
        (grown("layer9:after"), SurgeryError, "no site 'layer9:after'; this network has: layer1.0:beside"),
        (grown("layer2.0:beside", "squeeze_excite"), SurgeryError, "failed fits"),
        (grown("layer2.0:beside", "basic_blok"), ConfigError, "basic_block"),
    ],
)
def test_germinating_where_a_kernel_cannot_grow_is_an_error(
    model: MorphableModel, images: Tensor, graft: Graft, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        surgery.germinate(model, graft, images=images, epoch=1)


def test_a_recipe_rebuilds_the_grown_network(model: MorphableModel, images: Tensor) -> None:
    for graft in (
        grown("layer1.0:after", "squeeze_excite", 1),
        grown("layer1.0:beside", "conv1x1", 2),
        grown("layer2.0:width", "widen", 3),
        grown("layer2.0.conv2:parallel", "fold_3x3", 4),
        grown("layer1.0:after", "residual_block", 5),
    ):
        surgery.germinate(model, graft, images=images, epoch=1)
        hold(model, graft.site)
        surgery.fossilize(model.slot(graft.site), epoch=2)
    twin = wrapped()
    twin.replay(model.recipe)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.eval()(images), model.eval()(images))


def test_an_unwrapped_network_computes_the_same_without_hooks(model: MorphableModel, images: Tensor) -> None:
    for graft in (grown("layer1.0:after", "conv1x1", 1), grown("layer2.0:beside", "basic_block", 2)):
        surgery.germinate(model, graft, images=images, epoch=1)
        hold(model, graft.site)
    plain = unwrap(model.eval())
    assert not any(module._forward_hooks for module in plain.modules())
    assert torch.equal(plain(images), model(images))
    assert len(model.host.get_submodule("layer1.0")._forward_hooks) == 1  # the original still grows
