from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from esper import costs, tezzeret
from esper.models.resnet_small import SmallResNet

SHAPES = {"in_shape": (6, 8, 8), "out_shape": (12, 4, 4)}


def test_a_backward_pass_costs_two_forward_passes() -> None:
    assert costs.training_macs(5, 7) == 5 * 7 + 2 * 5 * 7
    totals = costs.Ledger(train_macs=costs.training_macs(5, 7)).totals()
    assert (totals["forward_macs"], totals["backward_macs"]) == (5 * 7, 2 * 5 * 7)


def real_macs(network: nn.Module, in_shape: tuple[int, ...]) -> int:
    """MACs of a forward and a backward pass of one example, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *in_shape)).sum().backward()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("frozen", [["conv1", "bn1", "layer1"], ["layer1"], ["layer2"], ["fc"], ["layer1.0.conv1"]])
def test_a_network_with_frozen_layers_costs_what_its_backward_pass_computes(frozen: list[str]) -> None:
    network = SmallResNet(widths=[4, 8], depths=[2, 2], in_channels=3, num_classes=5).eval()
    for name in frozen:
        network.get_submodule(name).requires_grad_(False)
    num_macs, skipped = costs.count(network, (3, 8, 8)).num_macs, costs.skipped_macs(network, (3, 8, 8))
    assert all(p.grad is None for p in network.parameters())
    assert costs.training_macs(1, num_macs, skipped=skipped) == real_macs(network, (3, 8, 8))


def test_a_frozen_recurrent_layer_at_the_beginning_costs_its_forward_pass() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.LSTM(5, 7, batch_first=True).requires_grad_(False), nn.Linear(7, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(self.layer(x)[0])
            return found

    network = Recurrent()
    num_macs, head = costs.count(network, (11, 5)).num_macs, 11 * 7 * 3
    assert costs.training_macs(1, num_macs, skipped=costs.skipped_macs(network, (11, 5))) == num_macs + head


def test_a_network_that_trains_whole_skips_nothing_and_the_ledger_tells_what_is_skipped() -> None:
    assert costs.skipped_macs(nn.Linear(4, 2), (4,)) == 0
    ledger = costs.Ledger(train_macs=costs.training_macs(5, 7, skipped=8), skipped_macs=5 * 8)
    assert (ledger.totals()["forward_macs"], ledger.totals()["backward_macs"]) == (5 * 7, 5 * (2 * 7 - 8))


def test_costs_are_those_counted_by_hand() -> None:
    kernel = tezzeret.build_kernel("basic_block", init_seed=0, output_scale=0.5, **SHAPES)  # type: ignore[arg-type]
    cost = costs.count(kernel.train(), (6, 8, 8))
    assert cost.num_parameters == 9 * 6 * 12 + 9 * 12 * 12 + 4 * 12
    assert cost.num_macs == (9 * 6 * 12 + 9 * 12 * 12) * 4 * 4
    assert kernel.training


def test_attention_costs_include_the_products_between_positions() -> None:
    kernel = tezzeret.build_kernel(
        "spatial_self_attention", in_shape=(8, 4, 4), out_shape=(8, 4, 4), init_seed=0, output_scale=0.5
    )
    cost = costs.count(kernel, (8, 4, 4))
    assert cost.num_macs == 4 * 8 * 8 * 16 + 2 * 16 * 16 * 8
    assert cost.num_parameters == 4 * 8 * 8 + 8 + 2 * 8 + 2 * 8


def test_what_sequences_cost_is_counted_without_padding() -> None:
    class Packed(nn.Module):
        """Reads ids up to the first 0."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.lstm = nn.Embedding(5, 4), nn.LSTM(4, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            ids = x.long()
            packed = nn.utils.rnn.pack_padded_sequence(self.embedding(ids), (ids != 0).sum(1), batch_first=True)
            return self.lstm(packed)[1][0][-1]  # type: ignore[no-any-return]

    assert costs.count(Packed(), (6,)).num_macs == 6 * 4 * 8 * (4 + 8)


def test_counting_changes_no_statistic() -> None:
    kernel = tezzeret.build_kernel("bottleneck", init_seed=0, output_scale=0.5, **SHAPES)  # type: ignore[arg-type]
    kernel.layers[1].eval()  # type: ignore[index,union-attr]
    modes = [m.training for m in kernel.modules()]
    before = {name: value.clone() for name, value in kernel.state_dict().items()}
    costs.count(kernel, (6, 8, 8))
    assert [m.training for m in kernel.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in kernel.state_dict().items())


def test_costs_add_and_subtract() -> None:
    a, b = costs.Cost(num_parameters=5, num_macs=7), costs.Cost(num_parameters=1, num_macs=2)
    assert a + b - b == a


@pytest.mark.parametrize(
    ("layer", "num_gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)], ids=lambda value: getattr(value, "__name__", None)
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_recurrent_layers_cost_the_products_of_every_step(
    layer: Callable[..., nn.Module], num_gates: int, device: str
) -> None:
    network = layer(5, 7, num_layers=2, bidirectional=True, batch_first=True).to(device)
    first, second = 7 * num_gates * (5 + 7), 7 * num_gates * (2 * 7 + 7)
    assert costs.count(network, (11, 5)).num_macs == 11 * 2 * (first + second)


def recurrent_shapes() -> tuple[Tensor, list[Tensor], Tensor]:
    """Input (T, N, D), weights and biases of a bidirectional LSTM layer, and its state; without memory."""
    with torch.device("meta"):
        weights = [p.detach() for p in nn.LSTM(5, 7, bidirectional=True).parameters()]
        return torch.empty(11, 3, 5), weights, torch.empty(2, 3, 7)


LSTM_MACS = 11 * 3 * 2 * 4 * 7 * (5 + 7)


@pytest.mark.parametrize("is_cudnn", [True, False])
def test_fused_recurrent_layers_of_nvidia_and_amd_gpus_cost_their_products(is_cudnn: bool) -> None:
    x, weights, state = recurrent_shapes()
    rest = [False, 0.0, False, True, [], None]  # batch_first, dropout, train, bidirectional, batch_sizes, dropout_state
    with costs.counting_macs() as macs:
        if is_cudnn:
            torch.ops.aten._cudnn_rnn(x, weights, 4, None, state, state, 2, 7, 0, 1, *rest)
        else:
            torch.ops.aten.miopen_rnn(x, weights, 4, state, state, 2, 7, 1, *rest)
    assert macs() == LSTM_MACS


def test_an_lstm_on_apple_gpus_costs_its_products_and_twice_as_many_backward() -> None:
    x, weights, state = recurrent_shapes()
    rest = [True, 1, 0.0, True, True, False]  # has_biases, num_layers, dropout, train, bidirectional, batch_first
    with torch.library._scoped_library("aten", "IMPL") as library, costs.counting_macs() as macs:
        # Their results matter to no test, and torch has none for the device without memory.
        library.impl("_lstm_mps", lambda *args: (args[0],) * 6, "Meta")
        library.impl("lstm_mps_backward", lambda *args: (args[5], args[7], args[8]), "Meta")
        torch.ops.aten._lstm_mps(x, [state, state], weights, *rest)
        assert macs() == LSTM_MACS
        torch.ops.aten.lstm_mps_backward(x, None, None, x, x, x, x, [state, state], weights, *rest)
    assert macs() == 3 * LSTM_MACS


class Squared(nn.Module):
    """A linear layer, and a bilinear one to which it gives both inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(4, 5), nn.Bilinear(5, 5, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        found: torch.Tensor = self.layer(x, x)
        return found


def test_a_bilinear_layer_costs_its_weight_for_each_example() -> None:
    assert costs.count(Squared(), (4,)).num_macs == 4 * 5 + 5 * 5 * 7


@pytest.mark.parametrize(
    ("frozen", "backward"),
    [("first", 5 * 5 * 7), ("layer", 2 * 5 * 5 * 7 + 4 * 5)],  # gradients of the weight; of both inputs
)
def test_each_gradient_of_a_bilinear_layer_costs_its_weight(frozen: str, backward: int) -> None:
    network = Squared()
    network.get_submodule(frozen).requires_grad_(False)
    assert costs.skipped_macs(network, (4,)) == 2 * (4 * 5 + 5 * 5 * 7) - backward


def test_a_backward_pass_that_recomputes_skips_no_less_than_nothing() -> None:
    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 5).requires_grad_(False)
            self.rest = nn.Sequential(nn.Linear(5, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = checkpoint(self.rest, self.first(x), use_reentrant=False)
            return found

    assert costs.skipped_macs(Recomputed(), (4,)) == 0
