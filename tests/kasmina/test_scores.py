from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from esper.kasmina import MorphableModel, Site, wrap
from esper.kasmina.scores import health, score_sites
from esper.kasmina.statistics import preserved_buffers, reestimate_norms


class Host(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        down = nn.Sequential(nn.Conv2d(3, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6))
        self.block = BasicBlock(3, 6, stride=2, downsample=down)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(x).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def model() -> MorphableModel:
    torch.manual_seed(0)
    return wrap(Host(), ["block"], input_shape=(3, 8, 8))


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 3, 8, 8, generator=generator), torch.randint(5, (n,), generator=generator)) for n in (7, 7, 3)
    ]


def test_a_score_is_the_squared_gradient_of_a_zero_convolution(
    model: MorphableModel, batches: list[tuple[Tensor, Tensor]]
) -> None:
    probe = nn.Conv2d(3, 6, 1, stride=2, bias=False)
    nn.init.zeros_(probe.weight)
    host = copy.deepcopy(model.host).eval()
    host.block.register_forward_hook(lambda _, args, output: output + probe(args[0]))
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    F.cross_entropy(host(images), labels).backward()
    assert probe.weight.grad is not None
    expected = float(probe.weight.grad.square().sum())
    assert score_sites(model, batches)["block:beside"].score == pytest.approx(expected, rel=1e-4)


def test_the_statistics_are_those_of_the_site(model: MorphableModel, batches: list[tuple[Tensor, Tensor]]) -> None:
    images = torch.cat([images for images, _ in batches])
    found = score_sites(model, batches)["block:beside"]
    assert found.activation_variance == pytest.approx(float(images.double().var(unbiased=False)), rel=1e-5)


def test_scoring_changes_nothing(model: MorphableModel, batches: list[tuple[Tensor, Tensor]]) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    score_sites(model.train(), batches)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def site(name: str, kind: str = "after") -> Site:
    return Site(name=name, layer="l", block="b", kind=kind, in_shape=(1, 1, 1), out_shape=(1, 1, 1))  # type: ignore[arg-type]


def test_health_compares_a_score_with_the_median_of_the_others_of_its_kind() -> None:
    scores = [(site("a"), 8.0), (site("b"), 2.0), (site("c"), 1.0), (site("d"), 4.0), (site("x", "beside"), 100.0)]
    assert health(scores) == {"a": 2.0 / 8.0, "b": 1.0, "c": 1.0, "d": 0.5, "x": None}


def test_a_site_without_gradient_is_not_in_need() -> None:
    assert health([(site("a"), 0.0), (site("b"), 0.0)]) == {"a": 1.0, "b": 1.0}


def test_reestimated_norms_hold_the_average_over_the_batches_and_nothing_else_moves(
    model: MorphableModel, batches: list[tuple[Tensor, Tensor]]
) -> None:
    norm = model.host.get_submodule("block.bn1")
    conv = model.host.get_submodule("block.conv1")
    weights = {name: p.clone() for name, p in model.named_parameters()}
    reestimate_norms(model, [images for images, _ in batches[:2]])
    expected = torch.stack([conv(images).mean((0, 2, 3)) for images, _ in batches[:2]]).mean(0)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-4, atol=1e-6)
    assert norm.momentum == 0.1
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_preserved_buffers_come_back_bit_identical(model: MorphableModel, batches: list[tuple[Tensor, Tensor]]) -> None:
    before = {name: value.clone() for name, value in model.named_buffers()}
    with preserved_buffers(model):
        reestimate_norms(model, [batches[0][0]])
        assert not torch.equal(model.host.get_buffer("block.bn1.running_mean"), before["host.block.bn1.running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
