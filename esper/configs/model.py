"""The host network, and the sites where it may grow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from esper.configs.schema import setting

__all__ = ["HOSTS", "PLUGIN", "SITE_KINDS", "TIMM", "HostInfo", "ModelConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInfo:
    """What is known about a host network before it is built.

    Attributes:
        module: module of its family, see `esper.models.host`.
        has_pretrained: whether there are pretrained weights.
    """

    module: str
    has_pretrained: bool = False


HOSTS = {
    "resnet10": HostInfo(module="esper.models.resnet"),
    "resnet18": HostInfo(module="esper.models.resnet", has_pretrained=True),
    "resnet34": HostInfo(module="esper.models.resnet", has_pretrained=True),
    "resnet50": HostInfo(module="esper.models.resnet", has_pretrained=True),
    "resnet_small": HostInfo(module="esper.models.resnet_small"),
    "vit": HostInfo(module="esper.models.vit"),
    "gpt": HostInfo(module="esper.models.gpt"),
}
TIMM = HostInfo(module="esper.models.timm_host", has_pretrained=True)
"""All networks of timm, whose names are not listed here."""
PLUGIN = HostInfo(module="esper.models.registered")
"""All networks of plugins."""
SITE_KINDS = ("beside", "after", "parallel", "width")


@dataclass(kw_only=True)
class ModelConfig:
    """Group `model`."""

    source: str = setting(
        "torchvision",
        "library of the host: torchvision (also for Esper's own: resnet10, resnet_small, vit), timm, or plugin "
        "(your own)",
        choices=("torchvision", "timm", "plugin"),
    )
    name: str = setting(
        "resnet18", f"host network: {', '.join(HOSTS)}, any name that timm knows, or one that a plugin has registered"
    )
    options: dict[str, Any] = setting({}, "source=plugin: arguments of your network's factory")
    digest: str | None = setting(None, "digest of a network given to fit, set by it: its source, layout and weights")
    num_classes: int | None = setting(None, "outputs of the classifier; null: the classes of the dataset", low=2)
    pretrained: bool = setting(
        False, "start from pretrained weights of torchvision or timm (not for resnet10, resnet_small, vit)"
    )
    init_from: str | None = setting(
        None,
        "start from the weights and modules of an earlier network: a run folder, a checkpoint, or what esper export "
        "wrote; another number of classes gets a new classifier",
    )
    init_digest: str | None = setting(None, "digest of the network in init_from; set at launch")
    stem: str = setting(
        "auto",
        "resnet10 to resnet50: first layers, cifar (3x3, stride 1, no pooling), imagenet (7x7, stride 2, max-pool), or "
        "auto (cifar for images up to 64 pixels, unless pretrained)",
        choices=("auto", "cifar", "imagenet"),
    )
    widths: list[int] = setting([16, 32, 64], "resnet_small: channels of each stage", low=1)
    depths: list[int] = setting([1, 1, 1], "resnet_small: blocks in each stage", low=1)
    patch_size: int = setting(4, "vit: side of a patch in pixels", low=1)
    width: int = setting(192, "vit, gpt: features of a token", low=1)
    depth: int = setting(6, "vit, gpt: blocks", low=1)
    heads: int = setting(3, "vit, gpt: attention heads, which share the width", low=1)
    mlp_ratio: float = setting(4.0, "vit, gpt: hidden features of a block's MLP as a multiple of the width", low=0.1)
    positions: str = setting(
        "learned",
        "gpt: learned vectors for the positions, or rotary: queries and keys are rotated by theirs",
        choices=("learned", "rotary"),
    )
    gradient_checkpointing: bool = setting(
        False, "recompute each block's activations in the backward pass, to save memory"
    )

    freeze: list[str] = setting(
        [],
        "patterns over names of the host's parameters that are not trained, such as layer1.*; with all of a batch "
        "norm's parameters its statistics stay too",
    )
    target_layers: list[str] = setting(
        ["layer1", "layer2", "layer3", "layer4"],
        "layers that may grow: names, or patterns such as layer*.0; [auto] finds the blocks of ResNet, ConvNeXt, "
        "EfficientNet, RegNet, ViT and similar networks, else repeated modules",
    )
    site_kinds: list[str] = setting(
        ["beside", "after"],
        "kinds of site: beside a block, after it, parallel to a convolution (folded into it at export), or width, the "
        "inner channels of a block or hidden units of its MLP",
        choices=SITE_KINDS,
    )
    seeds_per_layer: int = setting(4, "maximum slots in one target layer", low=1)
    max_kernels_per_seed: int = setting(3, "maximum modules that may grow in one slot", low=1)
