from __future__ import annotations

import pytest
import torch
from torchvision.models.resnet import BasicBlock

from esper import tezzeret, urza
from esper.configs import MorphogeneticConfig
from esper.errors import ConfigError
from esper.urza.foldable import ParallelBranch

PLACES = [
    ("after", (8, 4, 4), (8, 4, 4)),
    ("beside", (8, 4, 4), (8, 4, 4)),
    ("beside", (6, 8, 8), (12, 4, 4)),
    ("beside", (6, 7, 7), (12, 4, 4)),
    ("beside", (8, 2, 2), (16, 1, 1)),
    ("after", (4, 2, 2), (4, 2, 2)),
    ("after", (8, 1, 1), (8, 1, 1)),
    ("parallel", (8, 4, 4), (8, 4, 4)),
    ("parallel", (6, 7, 7), (12, 4, 4)),
    ("width", (8, 4, 4), (8, 4, 4)),
    ("width", (6, 7, 7), (12, 4, 4)),
    ("after", (5, 12), (5, 12)),
    ("beside", (5, 12), (5, 12)),
    ("beside", (5, 8), (5, 12)),
    ("width", (5, 8), (5, 8)),
    ("after", (12,), (12,)),
    ("beside", (8,), (12,)),
    ("width", (8,), (3,)),
]
CASES = [
    pytest.param(blueprint.blueprint_id, kind, in_shape, out_shape, id=f"{blueprint.blueprint_id}-{kind}-{in_shape}")
    for blueprint in urza.CATALOGUE.values()
    if blueprint.category != "copy"  # built from blocks of a network: tests/kasmina/test_copies.py
    for kind, in_shape, out_shape in PLACES
    if blueprint.fits(kind, in_shape, out_shape)
]


@pytest.mark.parametrize("output_scale", [0.0, 0.5])
@pytest.mark.parametrize(("blueprint_id", "kind", "in_shape", "out_shape"), CASES)
def test_every_blueprint_reaches_every_parameter_at_every_kind_of_site(
    blueprint_id: str, kind: str, in_shape: urza.Shape, out_shape: urza.Shape, output_scale: float
) -> None:
    kernel = tezzeret.build_kernel(
        blueprint_id, in_shape=in_shape, out_shape=out_shape, init_seed=3, output_scale=output_scale
    )
    x = torch.randn(5, *in_shape, generator=torch.Generator().manual_seed(0)).relu()
    # In float64, where a gradient that ought to be 0 is not taken for one because of rounding.
    found = tezzeret.check_kernel(kernel.double(), x.double(), out_shape)
    assert found.failed == ()
    assert set(found.passed) == {"shape", "dtype", "finite", "gradient_in_every_parameter"}


@pytest.mark.parametrize(("blueprint_id", "kind", "in_shape", "out_shape"), CASES)
def test_an_output_scale_of_zero_silences_a_newborn_and_one_half_does_not(
    blueprint_id: str, kind: str, in_shape: urza.Shape, out_shape: urza.Shape
) -> None:
    # Not below 0, as behind a ReLU: what a residual block needs to be the identity.
    x = torch.randn(5, *in_shape, generator=torch.Generator().manual_seed(0)).relu()
    build = {"in_shape": in_shape, "out_shape": out_shape, "init_seed": 3}
    assert not tezzeret.build_kernel(blueprint_id, output_scale=0.0, **build)(x).any()  # type: ignore[arg-type]
    assert tezzeret.build_kernel(blueprint_id, output_scale=0.5, **build)(x).any()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((5, 12), ["mlp", "self_attention", "layer_scale", "copy"]),
        ((12,), ["mlp", "layer_scale", "copy"]),
        ((3,), ["layer_scale", "copy"]),
        ((1, 12), ["mlp", "layer_scale", "copy"]),
        ((4, 2, 5, 5), ["copy"]),
    ],
)
def test_a_blueprint_fits_shapes_of_its_ranks(shape: urza.Shape, names: list[str]) -> None:
    assert [b.blueprint_id for b in urza.CATALOGUE.values() if b.fits("after", shape, shape)] == names


def test_attention_in_a_causal_host_does_not_look_ahead() -> None:
    kernel = tezzeret.build_kernel("self_attention", in_shape=(5, 8), out_shape=(5, 8), init_seed=0, output_scale=1.0)
    x = torch.randn(2, 5, 8)
    later = torch.cat([x[:, :3], torch.randn(2, 2, 8)], dim=1)
    assert not torch.allclose(kernel(x)[:, :3], kernel(later)[:, :3])
    kernel.adapt(activation=None, has_bias=True, is_causal=True)
    assert torch.allclose(kernel(x)[:, :3], kernel(later)[:, :3])


def test_all_categories_are_there_and_each_offers_a_choice_of_complexity() -> None:
    by_category = {b.category: [] for b in urza.CATALOGUE.values()}  # type: dict[str, list[int]]
    for blueprint in urza.CATALOGUE.values():
        by_category[blueprint.category].append(blueprint.complexity)
    assert set(by_category) == {"residual", "attention", "normalization", "copy"}
    assert sorted(by_category["residual"]) == [2, 2, 3, 3, 3, 4, 4, 4, 5, 5]
    assert sorted(by_category["attention"]) == [1, 2, 4, 4]


def test_allowed_obeys_categories_in_order_complexity_and_a_single_allowed_blueprint() -> None:
    def names(**changes: object) -> list[str]:
        settings = {"blueprint_categories": ["attention", "residual"], "max_blueprint_complexity": 4} | changes
        config = MorphogeneticConfig(**settings)  # type: ignore[arg-type]
        return [b.blueprint_id for b in urza.allowed(config, "after", (8, 4, 4), (8, 4, 4))]

    assert names() == [
        "spatial_self_attention", "squeeze_excite", "efficient_channel", "bottleneck", "depthwise", "conv1x1",
    ]  # fmt: skip
    assert names(max_blueprint_complexity=1) == ["efficient_channel"]
    assert names(blueprint="conv1x1") == ["conv1x1"]
    assert names(blueprint_categories=["normalization"], blueprint="conv1x1") == []


@pytest.mark.parametrize(
    ("kind", "first", "foldable"),
    [("after", "basic_block", ["residual_block"]), ("beside", "basic_block", []), ("width", "widen", ["widen"]),
     ("parallel", "fold_asymmetric", ["fold_asymmetric", "fold_3x3", "fold_1x1"])],
)  # fmt: skip
def test_each_kind_of_site_has_its_first_choice_and_what_is_foldable_there(
    kind: str, first: str, foldable: list[str]
) -> None:
    found = urza.allowed(MorphogeneticConfig(blueprint_categories=["residual"]), kind, (8, 4, 4), (8, 4, 4))
    assert found[0].blueprint_id == first
    assert [b.blueprint_id for b in found if b.foldable] == foldable


@pytest.mark.parametrize(("channels", "width"), [(4, 8), (16, 8), (32, 16), (64, 32), (80, 40), (512, 256)])
def test_a_block_gets_half_as_many_new_channels_in_eights(channels: int, width: int) -> None:
    kernel = urza.get("widen").build((channels, 4, 4), (channels, 4, 4))
    assert kernel.get_parameter("conv1.weight").shape == (width, channels, 3, 3)


def test_a_residual_block_adds_what_a_basic_block_computes() -> None:
    kernel = tezzeret.build_kernel(
        "residual_block", in_shape=(8, 4, 4), out_shape=(8, 4, 4), init_seed=0, output_scale=0.5
    ).eval()
    block = BasicBlock(8, 8).eval()
    block.load_state_dict(kernel.state_dict())
    y = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kernel.combine(y, y), block(y))
    assert torch.allclose(y + kernel(y), block(y), atol=1e-6)


@pytest.mark.parametrize("blueprint_id", ["fold_1x1", "fold_asymmetric", "fold_3x3"])
def test_a_parallel_branch_is_one_convolution_in_eval_mode(blueprint_id: str) -> None:
    kernel = tezzeret.build_kernel(
        blueprint_id, in_shape=(6, 7, 7), out_shape=(12, 4, 4), init_seed=0, output_scale=0.5
    )
    x = torch.randn(5, 6, 7, 7, generator=torch.Generator().manual_seed(0))
    kernel(3 * x + 1)  # statistics that are not those at birth
    assert isinstance(kernel, ParallelBranch)
    weight, bias = kernel.eval().fused(5, 5)
    folded = torch.nn.functional.conv2d(x.double(), weight, bias, stride=2, padding=2)
    assert torch.allclose(folded, kernel.double()(x.double()))


def test_self_attention_is_not_offered_where_positions_are_too_many() -> None:
    assert urza.get("spatial_self_attention").fits("after", (8, 32, 32), (8, 32, 32))
    assert not urza.get("spatial_self_attention").fits("after", (8, 33, 33), (8, 33, 33))


def test_blueprints_that_cannot_learn_from_one_position_are_not_offered_there() -> None:
    config = MorphogeneticConfig(blueprint_categories=["attention", "normalization"])
    offered = urza.allowed(config, "after", (8, 1, 1), (8, 1, 1))
    assert [b.blueprint_id for b in offered] == ["squeeze_excite", "efficient_channel", "layer_scale"]


@pytest.mark.parametrize(
    ("in_size", "out_size", "fits"),
    [((8, 8), (4, 4), True), ((7, 7), (4, 4), True), ((25, 25), (13, 13), True), ((4, 1), (2, 1), True),
     ((9, 9), (4, 4), False), ((4, 4), (8, 8), False), ((8, 8), (4, 8), False)],
)  # fmt: skip
def test_a_site_that_no_padded_convolution_spans_is_refused(
    in_size: tuple[int, int], out_size: tuple[int, int], fits: bool
) -> None:
    assert urza.get("conv1x1").fits("beside", (8, *in_size), (16, *out_size)) == fits


def test_the_weights_of_every_convolution_start_at_he_scale_also_depthwise() -> None:
    kernel = tezzeret.build_kernel(
        "depthwise", in_shape=(256, 4, 4), out_shape=(256, 4, 4), init_seed=0, output_scale=0.5
    )
    stds = [m.weight.std().item() for m in kernel.modules() if isinstance(m, torch.nn.Conv2d)]
    assert stds == pytest.approx([(2 / 9) ** 0.5, (2 / 256) ** 0.5], rel=0.05)


def test_an_unknown_blueprint_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"no blueprint 'squeeze_exite'; did you mean squeeze_excite\?"):
        urza.get("squeeze_exite")
