"""Vision transformers of torchvision, of any size.

Source: Dosovitskiy et al., An Image is Worth 16x16 Words, arXiv:2010.11929.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from esper.configs import ModelConfig
from esper.data import DataSpec
from esper.errors import ConfigError

__all__ = ["ViT", "build", "describe"]


class ViT(VisionTransformer):  # type: ignore[misc]
    """torchvision's `VisionTransformer`, which also takes images of other than three channels.

    Shape: (N, C, S, S) to (N, num_classes).
    """

    def __init__(self, config: ModelConfig, spec: DataSpec) -> None:
        in_channels, image_size, _ = spec.inputs
        super().__init__(
            image_size=image_size,
            patch_size=config.patch_size,
            num_layers=config.depth,
            num_heads=config.heads,
            hidden_dim=config.width,
            mlp_dim=round(config.mlp_ratio * config.width),
            num_classes=spec.num_outputs,
        )
        if in_channels != 3:
            size = config.patch_size
            proj = self.conv_proj = nn.Conv2d(in_channels, config.width, size, stride=size)
            # As torchvision initialises it.
            nn.init.trunc_normal_(proj.weight, std=math.sqrt(1 / (in_channels * size**2)))
            assert proj.bias is not None
            nn.init.zeros_(proj.bias)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters of two and more dimensions that are no matrices."""
        return {"class_token", "encoder.pos_embedding"}


def build(config: ModelConfig, spec: DataSpec) -> nn.Module:
    """Build a vision transformer; see `build_host`."""
    _, image_size, width = spec.inputs
    if image_size != width:
        raise ConfigError(f"model=vit: reads square images, but these are {image_size} x {width}; crop them")
    if image_size % config.patch_size:
        fitting = [size for size in range(1, image_size + 1) if image_size % size == 0]
        raise ConfigError(
            f"model.patch_size={config.patch_size}: images of {image_size} pixels are cut into whole patches; allowed "
            f"are {', '.join(map(str, fitting))}"
        )
    return ViT(config, spec)


def describe(config: ModelConfig, spec: DataSpec, network: nn.Module) -> dict[str, Any]:
    """Sizes of a network, for the model.json of an export; see `resnet.describe`."""
    layers = list(network.get_submodule("encoder.layers").children())
    return {
        "in_channels": spec.inputs[0],
        "image_size": spec.inputs[1],
        "num_classes": spec.num_outputs,
        "patch_size": config.patch_size,
        "width": config.width,
        "heads": config.heads,
        "depth": len(layers),
        "mlp_widths": [_mlp_width(layer) for layer in layers],
    }


def _mlp_width(layer: nn.Module) -> int:
    return next(
        m.out_features for name, m in layer.named_modules() if name.endswith("mlp.0") and isinstance(m, nn.Linear)
    )
