"""The host network, and where it may grow."""

from __future__ import annotations

from dataclasses import dataclass

from esper.configs.schema import setting

__all__ = ["MODEL_NAMES", "MODEL_SOURCES", "SITE_KINDS", "ModelConfig"]

MODEL_SOURCES = ("torchvision", "timm")
MODEL_NAMES = ("resnet10", "resnet18", "resnet34", "resnet50", "resnet_small")
SITE_KINDS = ("beside", "after", "parallel", "width")


@dataclass(kw_only=True)
class ModelConfig:
    """Group `model`."""

    source: str = setting(
        "torchvision",
        "where the architecture comes from: torchvision (or Esper, for resnet10 and resnet_small), or timm",
        choices=MODEL_SOURCES,
    )
    name: str = setting("resnet18", "architecture of the host: one of MODEL_NAMES, or any name that timm knows")
    num_classes: int | None = setting(None, "outputs of the classifier; null: as many as the dataset has", low=2)
    pretrained: bool = setting(False, "start from the source's pretrained weights (not resnet10, resnet_small)")
    stem: str = setting(
        "auto",
        "first layers: cifar (3x3, stride 1, no pooling), imagenet (7x7, stride 2, max-pool); "
        "auto: cifar for images up to 64 pixels, unless pretrained; timm's networks keep their own",
        choices=("auto", "cifar", "imagenet"),
    )
    widths: list[int] = setting([16, 32, 64], "resnet_small: channels of each stage", low=1)
    depths: list[int] = setting([1, 1, 1], "resnet_small: blocks in each stage", low=1)
    gradient_checkpointing: bool = setting(False, "recompute each block in the backward pass to save memory")

    target_layers: list[str] = setting(
        ["layer1", "layer2", "layer3", "layer4"],
        "layers that may grow: names, or patterns such as layer*.0; "
        "auto, alone: the blocks of the layouts that ResNet, ConvNeXt, EfficientNet, RegNet ... have",
    )
    site_kinds: list[str] = setting(
        ["beside", "after"],
        "where in a layer modules may grow: beside a block, after it, parallel to a convolution (folded into it at "
        "export), or in the width of a block's inner channels",
        choices=SITE_KINDS,
    )
    seeds_per_layer: int = setting(4, "most slots in one target layer", low=1)
    max_kernels_per_seed: int = setting(3, "most modules that may grow in one slot", low=1)
