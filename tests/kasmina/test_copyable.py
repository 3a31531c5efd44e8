"""Which networks can be copied is known before anything trains."""

from __future__ import annotations

import pytest
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
        ([nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 4)), nn.Sequential(Halving()), Head()], "the network"),
    ],
)
def test_a_stage_without_a_block_to_copy_is_refused(layers: list[nn.Module], stage: str) -> None:
    with pytest.raises(ConfigError, match=f"policy=stack: no block of {stage} has an output shaped like its input"):
        require(*layers)


def test_zeroed_copies_suit_blocks_in_double_precision() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), BasicBlock(4, 4), BasicBlock(4, 4)).double()
    model = wrap(network, ["1", "2"], 9, input_shape=(3, 8, 8), site_kinds=["after"])
    host = ModelConfig(source="plugin", name="own", target_layers=["1", "2"])
    require_copyable(model, host=host, growth=MorphogeneticConfig(policy="stack", copy_init="zeroed"))
