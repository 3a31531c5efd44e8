"""Which networks can be copied is known before anything trains."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable

import pytest
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock

from esper.configs import ModelConfig, MorphogeneticConfig
from esper.errors import ConfigError
from esper.kasmina import wrap
from esper.kasmina.copyable import require_copyable


class Head(nn.Sequential):
    """Not of the blocks' class."""

    def __init__(self) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


class Halving(nn.Sequential):
    """A block that changes the shape."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(4, 4, 2, stride=2), nn.ReLU())


def require(*layers: nn.Module, targets: list[str] | None = None) -> None:
    host = ModelConfig(source="plugin", name="own", target_layers=targets or ["auto"])
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *layers)
    model = wrap(network, host.target_layers, 9, input_shape=(3, 8, 8), site_kinds=["after"])
    require_copyable(model, host=host, growth=MorphogeneticConfig(policy="stack", copy_init="trained"))


def test_a_head_beside_the_blocks_of_a_network_is_no_stage() -> None:
    require(BasicBlock(4, 4), BasicBlock(4, 4), Head())
    require(BasicBlock(4, 4), BasicBlock(4, 4), Head(), targets=["1", "2"])


@pytest.mark.parametrize(
    ("layers", "stage"),
    [
        ([BasicBlock(4, 4), BasicBlock(4, 4), Halving(), Halving(), Head()], "the network"),
        ([nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 4)), nn.Sequential(Halving()), Head()], "2"),
    ],
)
def test_a_stage_without_a_block_to_copy_is_refused(layers: list[nn.Module], stage: str) -> None:
    with pytest.raises(ConfigError, match=f"policy=stack: no block of {stage} has an output shaped like its input"):
        require(*layers)


class Scaling(nn.Sequential):
    """A block that changes the number of channels, or not."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(nn.Conv2d(channels, out_channels, 1), nn.ReLU())


def test_blocks_that_lead_from_one_stage_of_a_container_to_the_next_are_no_stages() -> None:
    require(Scaling(4, 4), Scaling(4, 4), Scaling(4, 8), Scaling(8, 2), Scaling(2, 2))


def test_a_stem_and_a_head_of_one_class_are_no_stages() -> None:
    trunk = nn.Sequential(Halving(), BasicBlock(4, 4), BasicBlock(4, 4), Halving())
    require(trunk)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1)],
        [nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(2), nn.Linear(64, 64)],
    ],
)
def test_single_layers_are_copied_only_if_named_as_a_layer_and_its_copy_are_one_linear_map(
    layers: list[nn.Module],
) -> None:
    with pytest.raises(ConfigError, match=r"policy=stack: found single layers, no blocks of several \(0, .*heuristic"):
        require(*layers, nn.Flatten(), nn.Linear(256, 2))
    last = [str(1 + i) for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)][-1]
    require(*layers, nn.Flatten(), nn.Linear(256, 2), targets=[last])


@pytest.mark.parametrize(
    ("network", "advice"),
    [
        (torchvision.models.efficientnet_b0, "features.2.*,features.3.*,features.4.*,features.5.*,features.6.*"),
        (torchvision.models.mnasnet0_5, "layers.8.*,layers.9.*,layers.10.*,layers.11.*,layers.12.*"),
        (torchvision.models.regnet_y_400mf, "trunk_output.block2.*,trunk_output.block3.*,trunk_output.block4.*"),
    ],
)
def test_the_stages_that_a_refusal_names_can_be_copied(network: Callable[[], nn.Module], advice: str) -> None:
    for targets in (["auto"], advice.split(",")):
        host = ModelConfig(source="plugin", name="own", target_layers=targets)
        model = wrap(network(), targets, 64, input_shape=(3, 32, 32), site_kinds=["after"])
        growth = MorphogeneticConfig(policy="stack", copy_init="trained")
        refused = pytest.raises(ConfigError, match=re.escape(f"or model.target_layers=[{advice}])"))
        with refused if targets == ["auto"] else contextlib.nullcontext():
            require_copyable(model, host=host, growth=growth)


def test_zeroed_copies_suit_blocks_in_double_precision() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), BasicBlock(4, 4), BasicBlock(4, 4)).double()
    model = wrap(network, ["1", "2"], 9, input_shape=(3, 8, 8), site_kinds=["after"])
    host = ModelConfig(source="plugin", name="own", target_layers=["1", "2"])
    require_copyable(model, host=host, growth=MorphogeneticConfig(policy="stack", copy_init="zeroed"))
