"""Networks harmed at a known site."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from esper.models.resnet_small import SmallResNet

__all__ = ["PLANTS", "UNITS", "Plant", "planted_host"]

WIDTHS, DEPTHS = (16, 32, 64), (2, 2, 2)
UNITS = ("layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1")
"""The network's residual units, from 1 on."""


@dataclass(frozen=True, slots=True)
class Plant:
    """A way of harming the network.

    Attributes:
        name: in the result tables.
        squeezes: unit → harmfully low rank of its output.
        widths: unit → remaining inner channels of its block.
        decoys: unit → reduced but harmless rank of its output.
    """

    name: str
    squeezes: tuple[tuple[int, int], ...] = ()
    widths: tuple[tuple[int, int], ...] = ()
    decoys: tuple[tuple[int, int], ...] = ()

    @property
    def harmed(self) -> list[str]:
        """The sites that lack capacity; none in a control."""
        return [f"{UNITS[unit - 1]}:beside" for unit, _ in (*self.squeezes, *self.widths)]

    @property
    def kind(self) -> str:
        """Squeeze, width or control."""
        return "squeeze" if self.squeezes else "width" if self.widths else "control"


_DECOY = ((1, 8),)
PLANTS = (
    Plant("clean"),
    Plant("decoy only", decoys=_DECOY),
    Plant("squeeze 2", squeezes=((2, 2),)),
    Plant("squeeze 3", squeezes=((3, 2),)),
    Plant("squeeze 4", squeezes=((4, 2),)),
    Plant("squeeze 5", squeezes=((5, 2),)),
    Plant("squeeze 1", squeezes=((1, 1),)),
    Plant("squeeze 3, decoy", squeezes=((3, 2),), decoys=_DECOY),
    Plant("squeeze 4, decoy", squeezes=((4, 2),), decoys=_DECOY),
    Plant("width 3", widths=((3, 1),)),
    Plant("width 5", widths=((5, 1),)),
)


class _Squeezed(nn.Module):
    """A unit followed by a low-rank projection. Shape: as the unit."""

    def __init__(self, block: nn.Module, channels: int, rank: int) -> None:
        super().__init__()
        self.block = block
        self.down = nn.Conv2d(channels, rank, 1, bias=False)
        self.up = nn.Conv2d(rank, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.up(self.down(self.block(x))))
        assert isinstance(y, Tensor)
        return y


def planted_host(plant: Plant, *, rng_seed: int, num_classes: int = 10) -> nn.Module:
    """A small ResNet with a plant; its weights depend on the seed alone."""
    torch.manual_seed(rng_seed)
    host = SmallResNet(widths=WIDTHS, depths=DEPTHS, in_channels=3, num_classes=num_classes)
    for unit, width in plant.widths:
        block = host.get_submodule(UNITS[unit - 1])
        first, last = block.conv1, block.conv2
        assert isinstance(first, nn.Conv2d)
        assert isinstance(last, nn.Conv2d)
        block.conv1 = nn.Conv2d(first.in_channels, width, 3, stride=first.stride, padding=1, bias=False)
        block.bn1 = nn.BatchNorm2d(width)
        block.conv2 = nn.Conv2d(width, last.out_channels, 3, padding=1, bias=False)
    for unit, rank in (*plant.squeezes, *plant.decoys):
        name = UNITS[unit - 1]
        block = host.get_submodule(name)
        assert isinstance(block.conv2, nn.Conv2d)
        host.set_submodule(name, _Squeezed(block, block.conv2.out_channels, rank))
    return host
