from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from esper.configs import OptimizationConfig
from esper.errors import CheckpointError, SurgeryError
from esper.tolaria.optim import (
    add_parameters,
    build_optimizer,
    check_membership,
    load_state_tensors,
    remove_parameters,
    state_tensors,
)


def host() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for _ in range(steps):
        model(torch.ones(2, 3, 6, 6)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_momentum_of_the_host_survives_adoption_and_release(name: str) -> None:
    config, model = OptimizationConfig(optimizer=name), host()
    optimizer = build_optimizer(config, model.named_parameters())
    train(model, optimizer, 3)
    before = {key: value.clone() for key, value in state_tensors(optimizer).items()}
    newborn = nn.Conv2d(4, 4, 1)
    named = [(f"new.{key}", p) for key, p in newborn.named_parameters()]
    add_parameters(optimizer, config, named, born_step=3)
    model.add_module("new", newborn)
    check_membership(optimizer, model)
    after = state_tensors(optimizer)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(not value.any() for key, value in after.items() if key.startswith("new."))
    train(model, optimizer, 1)
    del model.new
    remove_parameters(optimizer, named)
    check_membership(optimizer, model)
    assert state_tensors(optimizer).keys() == before.keys()


def test_vectors_are_not_decayed() -> None:
    optimizer = build_optimizer(OptimizationConfig(weight_decay=0.1), host().named_parameters())
    decay = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]}
    assert decay == {"0.weight": 0.1, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_zero_state_from_the_start_trains_like_pytorchs_own(name: str) -> None:
    model = host()
    twin = copy.deepcopy(model)
    config = OptimizationConfig(optimizer=name, weight_decay=0.0)
    ours = build_optimizer(config, model.named_parameters())
    theirs: torch.optim.Optimizer = (
        torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        if name == "sgd"
        else torch.optim.AdamW(twin.parameters(), lr=0.1, weight_decay=0.0)
    )
    train(model, ours, 4)
    train(twin, theirs, 4)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_parameter_that_no_group_holds_is_found() -> None:
    model = host()
    optimizer = build_optimizer(OptimizationConfig(), model.named_parameters())
    model.add_module("new", nn.Linear(2, 2))
    with pytest.raises(SurgeryError, match=r"missing new.weight, new.bias"):
        check_membership(optimizer, model)


def test_state_is_loaded_by_name_and_a_foreign_one_refused() -> None:
    model, other = host(), host()
    optimizer = build_optimizer(OptimizationConfig(), model.named_parameters())
    train(model, optimizer, 2)
    saved = {key: value.clone() for key, value in state_tensors(optimizer).items()}
    fresh = build_optimizer(OptimizationConfig(), other.named_parameters())
    load_state_tensors(fresh, saved)
    assert all(torch.equal(value, saved[key]) for key, value in state_tensors(fresh).items())
    del saved["0.weight|momentum_buffer"]
    with pytest.raises(CheckpointError, match=r"1 missing \(e.g. 0.weight"):
        load_state_tensors(fresh, saved)
