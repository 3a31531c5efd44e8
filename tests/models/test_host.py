from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path

import pytest
import torch
import torchvision
from torchvision.models import ResNet18_Weights, WeightsEnum, resnet18

from esper.configs import ModelConfig
from esper.configs.compose import conf_folder
from esper.configs.model import HOSTS
from esper.data import DataSpec
from esper.errors import ConfigError
from esper.models import build_host, host_family


def build(*, in_channels: int = 3, image_size: int = 32, num_classes: int = 10, **settings: object) -> torch.nn.Module:
    config = ModelConfig(**settings)  # type: ignore[arg-type]
    return build_host(config, images(in_channels, image_size, num_classes))


def images(in_channels: int = 3, image_size: int = 32, num_classes: int = 10) -> DataSpec:
    return DataSpec(inputs=(in_channels, image_size, image_size), num_outputs=num_classes)


@pytest.mark.parametrize(("image_size", "positions"), [(32, 32), (64, 64), (96, 24)])
def test_small_images_get_the_cifar_stem(image_size: int, positions: int) -> None:
    host = build(image_size=image_size).eval()
    seen: list[torch.Size] = []
    host.get_submodule("layer1").register_forward_hook(lambda *args: seen.append(args[2].shape))
    host(torch.zeros(1, 3, image_size, image_size))
    assert seen[0][-1] == positions


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_names_are_torchvisions(name: str) -> None:
    from torchvision.models import get_model

    assert list(build(name=name, stem="imagenet", num_classes=1000).state_dict()) == list(get_model(name).state_dict())


def test_resnet10_is_resnet18_with_one_block_a_stage() -> None:
    names = list(build(name="resnet10", image_size=32).state_dict())
    assert names == [name for name in resnet18().state_dict() if not re.match(r"layer\d\.1\.", name)]
    assert tuple(build(name="resnet10", image_size=32).get_parameter("conv1.weight").shape) == (64, 3, 3, 3)


def test_hosts_take_grey_images_and_any_number_of_classes() -> None:
    for settings in ({"stem": "imagenet"}, {"stem": "cifar"}, {"name": "resnet_small"}):
        assert build(in_channels=1, num_classes=7, **settings)(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_a_small_resnet_has_the_configured_widths_and_depths() -> None:
    host = build(name="resnet_small", widths=[4, 6], depths=[2, 1])
    shapes = {name: tuple(value.shape) for name, value in host.state_dict().items()}
    assert shapes["layer1.1.conv2.weight"] == (4, 4, 3, 3)
    assert shapes["layer2.0.conv1.weight"] == (6, 4, 3, 3)
    assert "layer2.1.conv1.weight" not in shapes


def test_initial_weights_follow_from_the_global_seed() -> None:
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(build(name="resnet_small").get_parameter("layer1.0.conv1.weight"))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_more_stages_than_the_image_can_be_halved_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 stages halve an image of 4 pixels to nothing"):
        build(name="resnet_small", widths=[4] * 4, depths=[1] * 4, image_size=4)


@pytest.mark.parametrize("name", HOSTS)
def test_every_host_of_the_table_has_a_family_and_a_group_option(name: str) -> None:
    config = ModelConfig(name=name)
    is_text = name == "gpt"
    given = DataSpec(inputs=(32,), dtype=torch.int64, num_outputs=10) if is_text else images()
    network = build_host(config, given)
    described = host_family(config).describe(config, given, network)
    assert described["vocab_size" if is_text else "num_classes"] == 10
    assert (conf_folder() / "model" / f"{name}.yaml").is_file()


class TestPretrained:
    @pytest.fixture
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        return tmp_path / "checkpoints"

    def test_an_error_says_where_to_put_weights_that_cannot_be_downloaded(
        self, hub: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError("no network")

        monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
        with pytest.raises(ConfigError, match=rf"put that file in {hub}, or set model.pretrained=false"):
            build(pretrained=True, image_size=224, num_classes=1000)

    def test_weights_in_the_hub_folder_are_loaded_and_the_head_replaced(
        self, hub: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.manual_seed(3)
        source = resnet18()
        hub.mkdir()
        torch.save(source.state_dict(), hub / "weights")
        checksum = hashlib.sha256((hub / "weights").read_bytes()).hexdigest()
        named = (hub / "weights").rename(hub / f"resnet18-{checksum[:8]}.pth")  # as torchvision names its files
        weights = dataclasses.replace(ResNet18_Weights.DEFAULT.value, url=f"http://127.0.0.1:9/{named.name}")
        monkeypatch.setattr(
            torchvision.models, "get_model_weights", lambda _: WeightsEnum("Placed", {"DEFAULT": weights})
        )
        host = build(pretrained=True, image_size=224, num_classes=5)
        assert torch.equal(host.get_parameter("layer4.1.conv2.weight"), source.layer4[1].conv2.weight)
        assert host.get_parameter("fc.weight").shape == (5, 512)

    def test_a_damaged_file_in_the_hub_folder_is_not_read(self, hub: Path) -> None:
        hub.mkdir()
        (hub / Path(ResNet18_Weights.DEFAULT.url).name).write_bytes(b"<html>not found</html>")
        with pytest.raises(ConfigError, match=r"resnet18-f37072fd.pth is damaged .* remove it"):
            build(pretrained=True, image_size=224, num_classes=1000)

    def test_images_without_three_channels_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="the weights take 3 channels, the images have 1"):
            build(pretrained=True, in_channels=1)
