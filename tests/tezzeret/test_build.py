from __future__ import annotations

import torch
from torch import Tensor, nn

from esper import tezzeret
from esper.urza import Kernel

SHAPES = {"in_shape": (6, 8, 8), "out_shape": (12, 4, 4)}


def test_weights_depend_on_the_seed_alone_and_the_global_generator_is_untouched() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = tezzeret.build_kernel("basic_block", init_seed=5, output_scale=0.5, **SHAPES)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = (
        tezzeret.build_kernel("basic_block", init_seed=seed, output_scale=0.5, **SHAPES)  # type: ignore[arg-type]
        for seed in (5, 6)
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.layers[0].weight, other.layers[0].weight)  # type: ignore[index,union-attr]


def test_checking_changes_neither_kernel_nor_generator() -> None:
    kernel = tezzeret.build_kernel("basic_block", init_seed=5, output_scale=0.0, **SHAPES)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in kernel.state_dict().items()}
    state = torch.get_rng_state()
    tezzeret.check_kernel(kernel, torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(0)), (12, 4, 4))
    assert all(torch.equal(value, before[name]) for name, value in kernel.state_dict().items())
    assert all(p.grad is None for p in kernel.parameters())
    assert torch.equal(torch.get_rng_state(), state)


class DeadAtBirth(Kernel):
    """Upstream's bug: a zero convolution before a ReLU lets no gradient through, ever."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1, bias=False)
        self.scale = nn.Parameter(torch.ones(4))
        nn.init.zeros_(self.conv.weight)

    @property
    def output_scale(self) -> nn.Parameter:
        return self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu() * self.scale[:, None, None]


def test_a_kernel_that_is_dead_at_birth_fails() -> None:
    assert tezzeret.check_kernel(DeadAtBirth(), torch.randn(3, 4, 5, 5), (4, 5, 5)).failed == (
        "gradient_in_every_parameter",
    )


def test_a_wrong_shape_or_a_value_that_is_not_finite_fails_and_gradients_count_as_unmeasured() -> None:
    kernel = tezzeret.build_kernel("conv1x1", in_shape=(4, 5, 5), out_shape=(4, 5, 5), init_seed=0, output_scale=0.5)
    assert tezzeret.check_kernel(kernel, torch.randn(3, 4, 5, 5), (8, 5, 5)).failed == (
        "shape",
        "gradient_in_every_parameter",
    )
    broken = torch.full((3, 4, 5, 5), torch.inf)
    assert tezzeret.check_kernel(kernel, broken, (4, 5, 5)).failed == ("finite", "gradient_in_every_parameter")
