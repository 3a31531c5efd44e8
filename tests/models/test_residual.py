from __future__ import annotations

import pytest
import torch
import torchvision

from esper.models.residual import BasicBlock, Bottleneck, ResNet


@pytest.mark.parametrize(
    ("name", "block", "depths"),
    [
        ("resnet18", BasicBlock, [2, 2, 2, 2]),
        ("resnet34", BasicBlock, [3, 4, 6, 3]),
        ("resnet50", Bottleneck, [3, 4, 6, 3]),
    ],
)
def test_weights_and_outputs_are_those_of_torchvision_bit_for_bit(
    name: str, block: type[BasicBlock] | type[Bottleneck], depths: list[int]
) -> None:
    torch.manual_seed(3)
    expected = torchvision.models.get_model(name, weights=None)
    torch.manual_seed(3)
    network = ResNet(block, depths)
    assert [key for key, _ in network.named_modules()] == [key for key, _ in expected.named_modules()]
    state, other = network.state_dict(), expected.state_dict()
    assert list(state) == list(other)
    assert all(torch.equal(state[key], other[key]) for key in state)
    images = torch.randn(2, 3, 64, 64)
    for is_training in (True, False):
        losses = [net.train(is_training)(images).square().mean() for net in (network, expected)]
        assert torch.equal(*losses)
        for loss in losses:
            loss.backward()
    gradients = [[p.grad for p in net.parameters()] for net in (network, expected)]
    assert all(a is not None and torch.equal(a, b) for a, b in zip(*gradients, strict=True))
