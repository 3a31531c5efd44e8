from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from esper.errors import ConfigError
from esper.kasmina import find_sites


def sites_of(host: nn.Module, targets: list[str], *, seeds_per_layer: int = 4, size: int = 32) -> list[str]:
    found = find_sites(host, target_layers=targets, seeds_per_layer=seeds_per_layer, input_shape=(3, size, size))
    return [site.name for site in found]


def test_each_block_offers_a_site_beside_and_one_after_in_forward_order() -> None:
    assert sites_of(resnet18(), ["layer2"]) == [
        "layer2.0:beside", "layer2.0:after", "layer2.1:beside", "layer2.1:after",
    ]  # fmt: skip


def test_a_strided_block_maps_its_input_shape_to_its_output_shape() -> None:
    beside, after = find_sites(resnet18(), target_layers=["layer2.0"], seeds_per_layer=4, input_shape=(3, 64, 64))
    assert (beside.in_shape, beside.out_shape) == ((64, 16, 16), (128, 8, 8))
    assert (after.in_shape, after.out_shape) == ((128, 8, 8), (128, 8, 8))


def test_seeds_per_layer_caps_the_sites_of_each_target() -> None:
    assert sites_of(resnet18(), ["layer1", "layer2"], seeds_per_layer=1) == ["layer1.0:beside", "layer2.0:beside"]


def test_a_pattern_matches_segment_by_segment() -> None:
    assert sites_of(resnet18(), ["layer[12].1"], seeds_per_layer=1) == ["layer1.1:beside"]
    assert [n for n in sites_of(resnet18(), ["layer*.1"], seeds_per_layer=9) if n.endswith("after")] == [
        "layer1.1:after", "layer2.1:after", "layer3.1:after", "layer4.1:after",
    ]  # fmt: skip


def test_a_name_that_matches_nothing_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"'layr1' matches no layer; did you mean 'layer1'.*layer4"):
        sites_of(resnet18(), ["layr1"])


def test_a_layer_that_is_not_image_like_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'fc' does not map one \(N, C, H, W\) tensor"):
        sites_of(resnet18(), ["fc"])


def test_a_block_that_runs_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(self.block(x))  # type: ignore[no-any-return]

    with pytest.raises(ConfigError, match="more than once"):
        sites_of(Twice(), ["block"])


def test_finding_sites_leaves_mode_and_buffers_alone() -> None:
    host = resnet18().train()
    before = {name: value.clone() for name, value in host.state_dict().items()}
    sites_of(host, ["layer1"])
    assert host.training
    assert all(torch.equal(value, before[name]) for name, value in host.state_dict().items())
    assert not any(module._forward_hooks for module in host.modules())


def test_an_odd_size_is_halved_as_a_strided_convolution_does() -> None:
    beside, _ = find_sites(resnet18(), target_layers=["layer3.0"], seeds_per_layer=4, input_shape=(3, 200, 200))
    assert (beside.in_shape, beside.out_shape) == ((128, 25, 25), (256, 13, 13))
