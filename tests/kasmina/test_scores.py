from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from esper.kasmina import MorphableModel, Site, wrap
from esper.kasmina.modes import preserved_buffers, reestimate_norms
from esper.kasmina.scores import SiteScore, health, score_sites, scoring_macs


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
    assert score_sites(model, batches)["block:beside"].plain_score == pytest.approx(expected, rel=1e-4)


def test_rank_variance_and_gradient_norm_are_those_of_the_site(
    model: MorphableModel, batches: list[tuple[Tensor, Tensor]]
) -> None:
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
    shape = (1, 1, 1)
    return Site(name=name, layer="l", block="b", kind=kind, start="b", end="b", in_shape=shape, out_shape=shape)  # type: ignore[arg-type]


def score(value: float, error: float | None = 0.0) -> SiteScore:
    return SiteScore(
        score=value,
        score_error=error,
        plain_score=value,
        effective_rank=1.0,
        narrowest_width=1,
        activation_variance=1.0,
        gradient_norm=1.0,
    )


def test_health_compares_a_score_with_the_median_of_the_others_of_its_kind() -> None:
    values = {"a": 8.0, "b": 2.0, "c": 1.0, "d": 4.0}
    scores = [*((site(name), score(value)) for name, value in values.items()), (site("x", "beside"), score(100.0))]
    assert health(scores) == {"a": 2.0 / 8.0, "b": 1.0, "c": 1.0, "d": 0.5, "x": None}


def test_a_site_without_gradient_is_healthy() -> None:
    assert health([(site("a"), score(0.0)), (site("b"), score(-1.0))]) == {"a": 1.0, "b": 1.0}


def test_among_sites_with_only_noise_a_site_must_stand_out_from_the_noise() -> None:
    noise = [(site(name), score(value, 1.0)) for name, value in (("b", -0.1), ("c", 0.01), ("d", 0.0))]
    assert health([(site("a"), score(0.5, 1.0)), *noise])["a"] == 1.0
    assert health([(site("a"), score(10.0, 1.0)), *noise])["a"] == pytest.approx(0.1)


class Squeezed(nn.Module):
    """Three blocks of eight channels, of which the second lets only one direction through."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        squeeze = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 1, 1), nn.Conv2d(1, 8, 1))
        plain = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)) for _ in range(2)]
        self.blocks = nn.ModuleList([plain[0], squeeze, plain[1]])
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_a_planted_bottleneck_stands_out_and_shows_in_rank_and_width() -> None:
    torch.manual_seed(0)
    model = wrap(Squeezed(), ["blocks"], input_shape=(3, 6, 6), site_kinds=["beside"])
    images = torch.randn(1024, 3, 1, 1).expand(-1, -1, 6, 6)
    labels = (images[:, :, 0, 0] @ torch.randn(3, 4)).argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        F.cross_entropy(model(images[:512]), labels[:512]).backward()
        optimizer.step()
        optimizer.zero_grad()
    scores = score_sites(model, [(images[512:], labels[512:])])
    planted, others = scores["blocks.1:beside"], [scores[f"blocks.{i}:beside"] for i in (0, 2)]
    assert planted.score_error is not None
    assert planted.score > 3 * planted.score_error
    assert all(planted.score > 10 * other.score for other in others)
    assert max(scores, key=lambda name: scores[name].plain_score) == "blocks.2:beside"  # the plain score is taken in
    assert planted.effective_rank == pytest.approx(1.0, abs=1e-3)
    assert all(other.effective_rank > 1.01 for other in others)
    assert [score.narrowest_width for score in scores.values()] == [8, 1, 8]
    sites = {slot.site.name: slot.site for slot in model.all_slots()}
    found = health([(sites[name], score) for name, score in scores.items()])
    assert found["blocks.1:beside"] is not None
    assert found["blocks.1:beside"] < 0.3


@pytest.mark.parametrize("kind", ["beside", "after", "parallel", "width"])
def test_every_kind_of_site_is_scored_like_a_probe_inserted_there(
    kind: str, batches: list[tuple[Tensor, Tensor]]
) -> None:
    torch.manual_seed(0)
    model = wrap(Host(), ["block"], seeds_per_layer=8, input_shape=(3, 8, 8), site_kinds=[kind]).eval()
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    scores = score_sites(model, batches)
    for slot in model.all_slots():
        where = slot.site
        stride = where.in_shape[1] // where.out_shape[1]
        probe = nn.Conv2d(where.in_shape[0], where.out_shape[0], 1, stride=stride, bias=False)
        nn.init.zeros_(probe.weight)
        inputs: list[Tensor] = []
        start, end = model.host.get_submodule(where.start), model.host.get_submodule(where.end)
        hooks = [
            start.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0])),
            end.register_forward_hook(
                lambda _, __, output, inputs=inputs, probe=probe, kind=kind: (
                    output + probe(output if kind == "after" else inputs[-1])
                )
            ),
        ]
        F.cross_entropy(model(images), labels).backward()
        for hook in hooks:
            hook.remove()
        assert probe.weight.grad is not None
        assert scores[where.name].plain_score == pytest.approx(float(probe.weight.grad.square().sum()), rel=1e-4)


def test_scoring_macs_are_summed_over_sites(model: MorphableModel) -> None:
    # beside: 6 channels out, 3 in, 6 features; after: 6, 6 and 6; both at 4x4 positions
    beside = 6 * 3 + 6 * 6 + 3**2 + 6**2 + 6 * 3 + 6**2
    after = 6 * 6 + 6 * 6 + 6**2 + 6**2 + 6 * 6 + 6**2
    assert scoring_macs(model) == 16 * (beside + after)


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
