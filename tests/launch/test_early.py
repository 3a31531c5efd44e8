"""What is refused before data are read, for any network and any launcher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from esper.configs import TolariaConfig
from esper.configs.compose import compose
from esper.configs.load import from_hydra
from esper.configs.model import HOSTS
from esper.errors import ConfigError
from esper.launch.early import check_network

NEW = "morphogenetic=heuristic"


def configured(*overrides: str) -> TolariaConfig:
    return from_hydra(compose(overrides))


@pytest.mark.parametrize("growth", ["off", "default", "heuristic"])
@pytest.mark.parametrize("name", HOSTS)
def test_the_defaults_of_every_network_pass_and_no_random_number_is_drawn(
    tmp_path: Path, name: str, growth: str
) -> None:
    data = ["dataset=python_source"] if name == "gpt" else ["dataset=cifar10"]
    before = torch.get_rng_state()
    check_network(configured(f"model={name}", *data, f"morphogenetic={growth}"), run_dir=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_networks_that_may_not_be_known_beforehand_pass(tmp_path: Path) -> None:
    check_network(
        configured("model=timm", "model.name=resnet10t", NEW, "model.target_layers=[nothing]"), run_dir=tmp_path
    )
    check_network(
        configured("dataset=arrays", "dataset.data_dir=none.npz", NEW, "model.target_layers=[nothing]"),
        run_dir=tmp_path,
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=resnet18", NEW, "model.target_layers=[layr1]"], "'layr1' matches no layer; did you mean layer1"),
        (["model=gpt", "dataset=python_source", "model.target_layers=[blocs]"], "'blocs' matches no layer"),
        (["model=vit", "model.patch_size=5"], "patch_size=5"),
        (["model=resnet18", "model.freeze=[layer9.*]"], r"model.freeze=layer9\.\*: matches no parameter"),
        (["optimization.optimizer=adamw", "optimization.optimizer_options.betas=[0.9,2]"], "Invalid beta parameter"),
        (["model=resnet18", "optimization.optimizer=muon"], "matrices inside of a network, of which this one has none"),
        (["model=resnet18", "model.init_from=nowhere"], "model.init_from=.*nowhere: not a run's folder"),
        (["model=timm", "model.name=resnet10x"], "has no such network; did you mean resnet10t"),
    ],
)
def test_a_name_that_the_network_or_optimizer_lacks_is_refused(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_network(configured(*overrides), run_dir=tmp_path)


def test_a_member_of_a_sweep_may_start_from_the_network_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = configured("model=resnet18", "model.init_from=sweep/0")
    check_network(config, run_dir=Path("sweep/1"), earlier=[Path("sweep/0")])
    for earlier in ([], [Path("sweep/00")]):
        with pytest.raises(ConfigError, match="sweep/0: not a run's folder"):
            check_network(config, run_dir=Path("sweep/1"), earlier=earlier)
