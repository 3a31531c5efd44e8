from __future__ import annotations

import copy

import pytest
import torch

from esper.configs import ModelConfig
from esper.data import DataSpec
from esper.models import build_host, checkpoint_blocks


@pytest.mark.parametrize("training", [True, False])
def test_steps_with_recomputed_blocks_are_bit_identical_buffers_included(training: bool) -> None:
    torch.manual_seed(0)
    config = ModelConfig(name="resnet_small", widths=[4, 8], depths=[1, 2])
    plain = build_host(config, DataSpec(inputs=(3, 8, 8), num_outputs=5)).train(training)
    saving = copy.deepcopy(plain)
    seen: list[int] = []
    blocks = [saving.get_submodule(name) for name in ("layer1.0", "layer2.0", "layer2.1")]
    checkpoint_blocks(blocks)
    blocks[0].register_forward_hook(lambda *_: seen.append(1))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        images = torch.randn(6, 3, 8, 8, generator=generator)
        for model in (plain, saving):
            model(images).logsumexp(1).sum().backward()
            with torch.no_grad():
                for p in model.parameters():
                    assert p.grad is not None
                    p.sub_(p.grad, alpha=0.1)
                    p.grad = None
    assert len(seen) == 3  # hooks stay outside what is recomputed
    assert plain.state_dict().keys() == saving.state_dict().keys()
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), saving.state_dict().values(), strict=True)
    )
    assert torch.equal(plain.eval()(images), saving.eval()(images))


def test_fewer_activations_are_kept() -> None:
    host = build_host(ModelConfig(name="resnet_small"), DataSpec(inputs=(3, 16, 16), num_outputs=5))

    def saved_elements() -> int:
        total = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            host(torch.zeros(4, 3, 16, 16))
        return total

    before = saved_elements()
    checkpoint_blocks([host.get_submodule(f"layer{i}.0") for i in (1, 2, 3)])
    assert saved_elements() < before / 2
