from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from esper.configs import OptimizationConfig
from esper.configs.optimization import OPTIMIZERS
from esper.errors import CheckpointError, ConfigError, SurgeryError
from esper.tolaria.optim import (
    add_parameters,
    build_optimizer,
    check_membership,
    load_state_tensors,
    remove_parameters,
    set_learning_rates,
    state_tensors,
    undecayed_parameters,
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
    optimizer = build_optimizer(config, model)
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
    optimizer = build_optimizer(OptimizationConfig(weight_decay=0.1), host())
    assert decay_of(optimizer) == {"0.weight": 0.1, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_zero_state_from_the_start_trains_like_pytorchs_own(name: str) -> None:
    model = host()
    twin = copy.deepcopy(model)
    config = OptimizationConfig(optimizer=name, weight_decay=0.0)
    ours = build_optimizer(config, model)
    theirs: torch.optim.Optimizer = (
        torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        if name == "sgd"
        else torch.optim.AdamW(twin.parameters(), lr=0.1, weight_decay=0.0)
    )
    train(model, ours, 4)
    train(twin, theirs, 4)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


OPTIONS = {
    "adam": {"amsgrad": True, "betas": [0.8, 0.9]},
    "adagrad": {"initial_accumulator_value": 0.1},
    "nadam": {"decoupled_weight_decay": True},
    "rmsprop": {"momentum": 0.9, "centered": True},
}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - {"muon", "sgd"}))
def test_each_optimizer_trains_like_pytorchs_own_with_its_options_and_newborns_train_like_from_the_start(
    name: str,
) -> None:
    options = OPTIONS.get(name, {})
    config = OptimizationConfig(optimizer=name, weight_decay=0.0, optimizer_options=options)
    model = host()
    twin = copy.deepcopy(model)
    ours = build_optimizer(config, model)
    cls = getattr(torch.optim, OPTIMIZERS[name].class_name)
    theirs = cls(twin.parameters(), lr=0.1, weight_decay=0.0, **{k: _tuple(v) for k, v in options.items()})
    train(model, ours, 3)
    train(twin, theirs, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    newborn, alone = nn.Linear(3, 4), nn.Linear(3, 4)
    alone.load_state_dict(newborn.state_dict())
    add_parameters(ours, config, newborn.named_parameters(), born_step=3)
    apart = cls(alone.parameters(), lr=0.1, weight_decay=0.0, **{k: _tuple(v) for k, v in options.items()})
    for module, optimizer in ((newborn, ours), (alone, apart)):
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        for _ in range(3):
            module(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(newborn.parameters(), alone.parameters(), strict=True))


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4), nn.Linear(4, 2))


def test_muon_trains_inner_matrices_as_pytorchs_and_adamw_everything_else() -> None:
    config = OptimizationConfig(optimizer="muon", weight_decay=0.1, optimizer_options={"momentum": 0.9, "eps": 1e-7})
    model = mlp()
    twin = copy.deepcopy(model)
    ours = build_optimizer(config, model)
    uses = {name: group["uses_muon"] for group in ours.param_groups for name in group["names"]}
    assert [name for name, muon in uses.items() if muon] == ["1.weight", "3.weight"]
    theirs: dict[str, torch.optim.Optimizer] = {}
    for name, p in twin.named_parameters():
        decay = 0.1 if p.dim() > 1 else 0.0
        theirs[name] = (
            torch.optim.Muon([p], lr=0.1, weight_decay=decay, momentum=0.9, adjust_lr_fn="match_rms_adamw")
            if uses[name]
            else torch.optim.AdamW([p], lr=0.1, weight_decay=decay, eps=1e-7)
        )
    for group in ours.param_groups:
        group["lr"] = 0.1
    for _ in range(4):
        for network in (model, twin):
            network.zero_grad()
            network(torch.arange(5)).square().sum().backward()
        ours.step()
        for optimizer in theirs.values():
            optimizer.step()
        for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-7) if uses[name] else torch.equal(a, b)
        model.load_state_dict(twin.state_dict())  # bfloat16 inside of Muon would enlarge differences of the last bit


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_state_saved_and_loaded_by_name_trains_on_as_if_never_stopped(name: str) -> None:
    config = OptimizationConfig(optimizer=name, optimizer_options=OPTIONS.get(name, {}))
    model = mlp()
    optimizer = build_optimizer(config, model)
    newborn = nn.Linear(2, 2)
    named = [(f"new.{key}", p) for key, p in newborn.named_parameters()]
    add_parameters(optimizer, config, named, born_step=1, warmup_steps=2)
    twins = copy.deepcopy((model, newborn))
    train_together(optimizer, model, newborn, steps=3)
    weights = [module.state_dict() for module in (model, newborn)]
    saved = {key: value.clone() for key, value in state_tensors(optimizer).items()}
    resumed = build_optimizer(config, twins[0])
    add_parameters(resumed, config, [(f"new.{k}", p) for k, p in twins[1].named_parameters()], born_step=1)
    for twin, values in zip(twins, weights, strict=True):
        twin.load_state_dict(values)
    load_state_tensors(resumed, saved)
    train_together(optimizer, model, newborn, steps=2)
    train_together(resumed, *twins, steps=2)
    assert all(torch.equal(value, state_tensors(optimizer)[key]) for key, value in state_tensors(resumed).items())
    pairs = zip([*model.parameters(), *newborn.parameters()], [p for m in twins for p in m.parameters()], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def train_together(optimizer: torch.optim.Optimizer, model: nn.Module, newborn: nn.Module, *, steps: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    for _ in range(steps):
        newborn(model(torch.arange(5))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_muon_is_refused_where_it_would_train_nothing() -> None:
    with pytest.raises(ConfigError, match=r"optimizer=muon: trains matrices .* none .*; use adamw"):
        build_optimizer(OptimizationConfig(optimizer="muon"), host())


def test_an_option_that_torch_refuses_is_one_line() -> None:
    config = OptimizationConfig(optimizer="adamw", optimizer_options={"betas": [0.9, 1.5]})
    with pytest.raises(ConfigError, match=r"optimizer_options=.*Invalid beta parameter at index 1: 1.5"):
        build_optimizer(config, host())


@pytest.mark.parametrize("name", [n for n, o in OPTIMIZERS.items() if o.is_capturable and not o.is_fused])
def test_a_step_that_is_captured_reads_nothing_from_the_device(name: str) -> None:
    # Fake tensors claim to be on CUDA; reading one raises DataDependentOutputException.
    config = OptimizationConfig(optimizer=name, weight_decay=0.1, optimizer_options=OPTIONS.get(name, {}))
    with FakeTensorMode():  # matrices only: Muon's AdamW is fused, which needs a GPU even for fake tensors
        model = nn.ParameterList([torch.ones(4, 3, device="cuda"), torch.ones(3, 2, device="cuda")])
        optimizer = build_optimizer(config, model)
        newborn = nn.Linear(3, 4, bias=name != "muon", device="cuda")
        add_parameters(optimizer, config, newborn.named_parameters(), born_step=1)
        for step in range(3):
            set_learning_rates(optimizer, 0.1 * step, step=step)
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = torch.ones_like(p)
            optimizer.step()
        devices = {key: value.device.type for key, value in state_tensors(optimizer).items()}
        assert set(devices.values()) == {"cuda"}


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 4, 2))
        self.mix = nn.Linear(2, 2)

    def no_weight_decay(self) -> set[str]:
        return {"position"}


def test_what_a_module_names_is_not_decayed_and_neither_are_its_copies() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Tokens())
    config = OptimizationConfig(weight_decay=0.1)
    optimizer = build_optimizer(config, model)
    assert decay_of(optimizer) == {
        "0.weight": 0.1,
        "0.bias": 0.0,
        "1.position": 0.0,
        "1.mix.weight": 0.1,
        "1.mix.bias": 0.0,
    }
    copied = nn.Parameter(model[1].position.detach().clone())
    spared = undecayed_parameters(model, [(model[1].position, copied)])
    add_parameters(optimizer, config, [("new", copied)], born_step=1, undecayed=spared)
    assert decay_of(optimizer)["new"] == 0.0
    everything = build_optimizer(OptimizationConfig(weight_decay=0.1, decay_norms_and_biases=True), model)
    assert set(decay_of(everything).values()) == {0.1}


def decay_of(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    return {name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]}


def test_a_parameter_that_no_group_holds_is_found() -> None:
    model = host()
    optimizer = build_optimizer(OptimizationConfig(), model)
    model.add_module("new", nn.Linear(2, 2))
    with pytest.raises(SurgeryError, match=r"missing new.weight, new.bias"):
        check_membership(optimizer, model)


def test_state_is_loaded_by_name_and_a_foreign_one_refused() -> None:
    model, other = host(), host()
    optimizer = build_optimizer(OptimizationConfig(), model)
    train(model, optimizer, 2)
    saved = {key: value.clone() for key, value in state_tensors(optimizer).items()}
    fresh = build_optimizer(OptimizationConfig(), other)
    load_state_tensors(fresh, saved)
    assert all(torch.equal(value, saved[key]) for key, value in state_tensors(fresh).items())
    del saved["0.weight|momentum_buffer"]
    with pytest.raises(CheckpointError, match=r"1 missing \(e.g. 0.weight"):
        load_state_tensors(fresh, saved)
