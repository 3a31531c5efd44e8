from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50
from torchvision.models.resnet import BasicBlock
from torchvision.ops import SqueezeExcitation

from esper.errors import ConfigError
from esper.kasmina import find_sites
from esper.kasmina.blocks import find_blocks


def sites_of(
    host: nn.Module,
    targets: list[str],
    *,
    seeds_per_layer: int = 4,
    size: int = 32,
    kinds: Sequence[str] = ("beside", "after"),
) -> list[str]:
    found = find_sites(
        host, target_layers=targets, seeds_per_layer=seeds_per_layer, input_shape=(3, size, size), kinds=kinds
    )
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
    with pytest.raises(ConfigError, match=r"'layr1' matches no layer; did you mean layer1\?.*layer4"):
        sites_of(resnet18(), ["layr1"])


def test_a_block_that_runs_twice_is_rejected() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(self.block(x))  # type: ignore[no-any-return]

    with pytest.raises(ConfigError, match="more than once"):
        sites_of(Twice(), ["block"])


def test_finding_sites_changes_neither_mode_nor_buffers() -> None:
    host = resnet18().train()
    before = {name: value.clone() for name, value in host.state_dict().items()}
    sites_of(host, ["layer1"], kinds=ALL)
    assert host.training
    assert all(torch.equal(value, before[name]) for name, value in host.state_dict().items())
    assert not any(module._forward_hooks for module in host.modules())


ALL = ("width", "parallel", "after", "beside")


def test_every_convolution_with_a_norm_offers_a_parallel_site_and_a_downsampling_1x1_none() -> None:
    found = find_sites(
        resnet18(), target_layers=["layer2"], seeds_per_layer=4, input_shape=(3, 64, 64), kinds=["parallel"]
    )
    assert [(site.name, site.start, site.end) for site in found] == [
        (f"layer2.{i}.conv{j}:parallel", f"layer2.{i}.conv{j}", f"layer2.{i}.bn{j}") for i in (0, 1) for j in (1, 2)
    ]
    assert (found[0].in_shape, found[0].out_shape) == ((64, 16, 16), (128, 8, 8))
    assert sites_of(resnet50(), ["layer1.0"], kinds=["parallel"]) == ["layer1.0.conv2:parallel"]


def test_a_basic_block_offers_a_site_in_its_width_and_a_bottleneck_none() -> None:
    (site,) = find_sites(
        resnet18(), target_layers=["layer2.0"], seeds_per_layer=4, input_shape=(3, 64, 64), kinds=["width"]
    )
    assert (site.name, site.start, site.norm, site.end) == (
        "layer2.0:width", "layer2.0.conv1", "layer2.0.bn1", "layer2.0.conv2",
    )  # fmt: skip
    assert (site.in_shape, site.out_shape) == ((64, 16, 16), (128, 8, 8))
    assert sites_of(resnet50(), ["layer1"], kinds=["width"]) == []


def test_sites_of_all_kinds_are_listed_block_by_block_and_share_seeds_per_layer() -> None:
    names = [
        "layer1.0:beside", "layer1.0:after", "layer1.0.conv1:parallel", "layer1.0.conv2:parallel", "layer1.0:width",
        "layer1.1:beside",
    ]  # fmt: skip
    assert sites_of(resnet18(), ["layer1"], kinds=ALL, seeds_per_layer=6) == names
    assert sites_of(resnet18(), ["layer1"], kinds=ALL[::-1], seeds_per_layer=6) == names


class Odd(BasicBlock):
    """A block with something about it that folding could not follow."""

    def __init__(self, oddity: str) -> None:
        super().__init__(3, 3)
        self.oddity = oddity
        if oddity == "groups":
            self.conv1 = nn.Conv2d(3, 3, 3, padding=1, groups=3)
        elif oddity == "no padding":
            self.conv1 = nn.Conv2d(3, 3, 3)
        elif oddity == "no statistics":
            self.bn1 = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(x)
        if self.oddity == "added before the norm":
            y += 1.0
        z = self.bn1(y)
        if self.oddity == "read twice":
            z = z + y + self.downsampled(y)
        return self.conv2(self.relu(z))  # type: ignore[no-any-return]

    def downsampled(self, y: torch.Tensor) -> torch.Tensor:
        return self.bn2(y)  # type: ignore[no-any-return]


class NormAndAct(nn.BatchNorm2d):
    """A norm with the activation inside, as timm's are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


def test_a_norm_with_its_activation_inside_offers_no_site_to_fold_into() -> None:
    block = BasicBlock(3, 3)
    block.bn1 = NormAndAct(3)
    assert sites_of(nn.Sequential(block), ["0"], kinds=["parallel", "width"]) == ["0.conv2:parallel"]


@pytest.mark.parametrize("oddity", ["groups", "no padding", "no statistics", "added before the norm", "read twice"])
def test_a_convolution_that_could_not_be_folded_offers_no_site(oddity: str) -> None:
    assert sites_of(nn.Sequential(Odd("")), ["0"], kinds=["parallel", "width"]) == ["0.conv1:parallel", "0:width"]
    assert sites_of(nn.Sequential(Odd(oddity)), ["0"], kinds=["parallel", "width"]) == []


def test_an_odd_size_is_halved_as_a_strided_convolution_does() -> None:
    beside, _ = find_sites(resnet18(), target_layers=["layer3.0"], seeds_per_layer=4, input_shape=(3, 200, 200))
    assert (beside.in_shape, beside.out_shape) == ((128, 25, 25), (256, 13, 13))


class Staged(nn.Module):
    """A network whose blocks `stages.0.blocks.N` are given."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.stages = nn.Sequential(nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stages(self.stem(x))  # type: ignore[no-any-return]


class Turned(nn.Module):
    """A block that puts the channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.permute(0, 2, 3, 1))  # type: ignore[no-any-return]


def test_auto_finds_the_blocks_of_a_known_layout_stage_by_stage_as_naming_the_stages_does() -> None:
    assert sites_of(resnet18(), ["auto"], kinds=ALL) == sites_of(
        resnet18(), [f"layer{i}" for i in (1, 2, 3, 4)], kinds=ALL
    )
    site, *_ = find_sites(Staged(BasicBlock(4, 4)), target_layers=["auto"], seeds_per_layer=4, input_shape=(3, 8, 8))
    assert (site.name, site.layer) == ("stages.0.blocks.0:beside", "stages.0.blocks")


def test_auto_skips_blocks_at_which_nothing_can_grow_and_raises_if_none_is_left() -> None:
    assert sites_of(Staged(BasicBlock(4, 4), Turned(4)), ["auto"], seeds_per_layer=9) == [
        "stages.0.blocks.0:beside", "stages.0.blocks.0:after",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"'stages.0.blocks.0' .*channels last.* morphogenetic=off"):
        sites_of(Staged(Turned(4)), ["auto"])
    with pytest.raises(ConfigError, match=r"'stages.0.blocks.1' .*channels last"):
        sites_of(Staged(BasicBlock(4, 4), Turned(4)), ["stages.0.blocks"])


def test_auto_without_a_known_layout_lists_the_layers() -> None:
    with pytest.raises(ConfigError, match=r"target_layers=\[auto\].*it has 0, and the layers inside them"):
        sites_of(nn.Sequential(nn.Conv2d(3, 3, 1)), ["auto"])


def test_auto_finds_single_layers_of_any_class_but_not_the_one_that_attention_reads() -> None:
    class Scaled(nn.Linear):
        pass

    layers = [nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), Scaled(4, 4), nn.MultiheadAttention(4, 2)]
    assert list(find_blocks(nn.Sequential(*layers, nn.Linear(4, 2)), ["auto"])) == ["0", "1"]


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("kind", ["TorchScript", "compiled"])
def test_what_is_compiled_outside_of_the_blocks_does_not_hinder_growth(kind: str) -> None:
    network, stem = Staged(BasicBlock(4, 4)), nn.Conv2d(3, 4, 1)
    expected = sites_of(network, ["auto"])
    network.stem = torch.jit.script(stem) if kind == "TorchScript" else torch.compile(stem, backend="eager")  # type: ignore[assignment]
    assert sites_of(network, ["auto"]) == expected
    if kind == "TorchScript":
        network.get_submodule("stages.0.blocks.0").relu = torch.jit.script(nn.ReLU())
        assert sites_of(network, ["auto"]) == expected
    network.stages[0].compile(backend="eager")
    for named, told in (("stem", kind), ("stages.0", "compiled")):
        with pytest.raises(ConfigError, match=f"{named} is {told}, so that nothing"):
            sites_of(network, [named])


class Attributes(nn.Module):
    """Blocks that are attributes of the network, or in a dictionary; `head` has layers inside, too."""

    def __init__(self, *, in_dict: bool) -> None:
        super().__init__()
        blocks = {name: BasicBlock(4, 4) for name in ("first", "second", "third")}
        self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        self.trunk = nn.ModuleDict(blocks) if in_dict else None
        for name, block in {} if in_dict else blocks.items():
            self.add_module(name, block)

    def forward(self, x: Tensor) -> Tensor:
        names = ("first", "second", "third")
        x = self.stem(x)
        for block in self.trunk.values() if self.trunk is not None else map(self.get_submodule, names):
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("in_dict", [False, True])
def test_auto_finds_blocks_that_are_attributes_or_in_a_dictionary(in_dict: bool) -> None:
    names = [f"trunk.{name}" if in_dict else name for name in ("first", "second", "third")]
    network = Attributes(in_dict=in_dict)
    found = sites_of(network, ["auto"], seeds_per_layer=9, kinds=("after",))
    assert found == [f"{name}:after" for name in names]
    assert sites_of(network, ["trunk"] if in_dict else names, seeds_per_layer=9, kinds=("after",)) == found


class Within(nn.Module):
    """A network inside another one."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).flatten(1))  # type: ignore[no-any-return]


def test_auto_finds_the_blocks_of_a_network_inside_another_one() -> None:
    for backbone in (Staged(BasicBlock(4, 4)), Attributes(in_dict=False), resnet18()):
        alone = sites_of(backbone, ["auto"], seeds_per_layer=9)
        assert sites_of(Within(backbone), ["auto"], seeds_per_layer=9) == [f"backbone.{name}" for name in alone]


def stage(*blocks: nn.Module) -> nn.Sequential:
    return nn.Sequential(*blocks)


@pytest.mark.parametrize(
    ("network", "blocks"),
    [
        (stage(stage(BasicBlock(3, 3)), stage(BasicBlock(3, 3), BasicBlock(3, 3))), ["0.0", "1.0", "1.1"]),
        (nn.ModuleList(nn.LSTM(3, 3) for _ in range(2)), ["0", "1"]),
        (stage(stage(BasicBlock(3, 3), Turned(3)), stage(BasicBlock(3, 3), Turned(3))), ["0", "1"]),
    ],
    ids=["stages", "recurrent layers", "blocks of several modules"],
)
def test_blocks_in_containers_are_those_that_repeat(network: nn.Module, blocks: list[str]) -> None:
    assert list(find_blocks(network, ["auto"])) == blocks


def test_the_gate_of_squeeze_and_excitation_is_not_among_the_convolutions_of_a_site() -> None:
    block = nn.Sequential(OrderedDict(conv=nn.Conv2d(4, 4, 3, padding=1), se=SqueezeExcitation(4, 2)))
    site, *_ = find_sites(Staged(block), target_layers=["auto"], seeds_per_layer=1, input_shape=(3, 8, 8))
    assert site.convs == {"stages.0.blocks.0.conv"}


@pytest.mark.parametrize("rectified", [True, False])
def test_a_site_knows_whether_its_block_has_negative_outputs(rectified: bool) -> None:
    block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU() if rectified else nn.BatchNorm2d(4))
    sites = find_sites(Staged(block), target_layers=["auto"], seeds_per_layer=2, input_shape=(3, 8, 8))
    assert [site.is_rectified for site in sites] == [rectified, rectified]
