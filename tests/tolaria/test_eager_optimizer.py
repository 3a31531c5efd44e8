from __future__ import annotations

from typing import Any

import pytest
import torch

from esper.tolaria.eager_optimizer import eager


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        ("AdamW", {"weight_decay": 0.1}),
        ("Adadelta", {}),
        ("NAdam", {}),
        ("RMSprop", {"centered": True}),
        ("Adafactor", {}),
    ],
)
def test_steps_are_those_of_torch_bit_for_bit(name: str, options: dict[str, Any]) -> None:
    trained = []
    plain: type[torch.optim.Optimizer] = getattr(torch.optim, name)
    for kind in (plain, eager(plain)):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
        made: Any = kind
        optimizer = made(network.parameters(), lr=0.1, **options)
        assert isinstance(optimizer, plain)
        for _ in range(4):
            network(torch.randn(7, 5)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        trained.append([p.detach() for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))
    assert plain.step is not eager(plain).step
