"""Vision transformers: any image, patch and size."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from esper.configs import ModelConfig
from esper.configs.check import check
from esper.data import DataSpec
from esper.errors import ConfigError
from esper.inference.export import export
from esper.models import build_host, host_family
from tests.conftest import tiny_config
from tests.tolaria.checkpoints.test_resume import assert_same, train

CONFIG = ModelConfig(name="vit", patch_size=4, width=12, depth=2, heads=3, mlp_ratio=2.0)


def build(config: ModelConfig = CONFIG, *, in_channels: int = 3, image_size: int = 8) -> nn.Module:
    return build_host(config, DataSpec(inputs=(in_channels, image_size, image_size), num_outputs=5))


def test_names_and_initial_weights_are_torchvisions() -> None:
    torch.manual_seed(0)
    ours = build().state_dict()
    torch.manual_seed(0)
    network = VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=3, hidden_dim=12, mlp_dim=24, num_classes=5
    )
    assert list(ours) == list(network.state_dict())
    assert all(torch.equal(ours[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize(("in_channels", "image_size"), [(1, 8), (4, 12), (3, 16)])
def test_it_takes_any_image_and_an_export_says_its_sizes(in_channels: int, image_size: int) -> None:
    network = build(in_channels=in_channels, image_size=image_size)
    assert network(torch.zeros(2, in_channels, image_size, image_size)).shape == (2, 5)
    spec = DataSpec(inputs=(in_channels, image_size, image_size), num_outputs=5)
    described = host_family(CONFIG).describe(CONFIG, spec, network)
    assert (described["image_size"], described["depth"], described["mlp_widths"]) == (image_size, 2, [24, 24])


def test_images_that_are_not_whole_patches_are_refused_with_the_patches_that_fit() -> None:
    with pytest.raises(ConfigError, match=r"model.patch_size=4: images of 10 pixels .* allowed are 1, 2, 5, 10"):
        build(image_size=10)


def test_heads_that_do_not_share_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.heads=5: .*model.width=12; allowed are its divisors, such as 4"):
        check(tiny_config(model=ModelConfig(name="vit", width=12, heads=5)))


def test_it_names_parameters_that_need_no_weight_decay() -> None:
    network = build()
    assert isinstance(network, VisionTransformer)
    names = {name for name, p in network.named_parameters() if p.dim() > 2 and "conv" not in name}
    assert network.no_weight_decay() == names  # type: ignore[operator]


STACK = {"policy": "stack", "blueprint_categories": ["copy"], "max_adaptations_per_epoch": 8, "judged": False}
WIDEN = {"blueprint": "widen", "judged": False}


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "growth", "depth", "widths"),
    [
        ("after", STACK, 4, [24] * 4),
        ("width", WIDEN, 2, [24, 24 + 24]),
        ("after", {"blueprint": "mlp", "judged": False}, 2, None),
    ],
)
def test_a_grown_vit_resumes_bit_identically_and_is_exported_as_a_vit(
    kind: str, growth: dict[str, object], depth: int, widths: list[int] | None, tmp_path: Path
) -> None:
    host = dataclasses.replace(
        CONFIG, target_layers=["encoder.layers"], site_kinds=[kind], seeds_per_layer=64, gradient_checkpointing=False
    )
    config = tiny_config(model=host, **{f"morphogenetic__{name}": value for name, value in growth.items()})
    whole, grown = train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_at=8)
    resumed, _ = train(config, tmp_path / "parts")
    assert_same(whole, resumed)
    assert grown["recipe"]
    out = export(tmp_path / "parts", tmp_path / "out")
    described = json.loads((out / "model.json").read_text())
    assert described["depth"] == depth
    if widths is None:
        assert [graft["blueprint_id"] for graft in described["not_folded"]] == ["mlp"]
        return
    assert described["not_folded"] == []
    assert sorted(described["mlp_widths"]) == widths
    if kind == "after":
        build_host(dataclasses.replace(host, depth=depth), DataSpec(inputs=(3, 8, 8), num_outputs=10)).load_state_dict(
            load_file(out / "model.safetensors")
        )
