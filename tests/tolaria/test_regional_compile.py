"""Compiling by regions: same numbers, few graphs, and growth that neither breaks nor repeats them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from esper.configs import ModelConfig
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.recipe import Graft
from esper.data import DataSpec
from esper.errors import ConfigError
from esper.kasmina import MorphableModel, find_blocks, wrap
from esper.models import build_host
from esper.tolaria import TolariaTrainer
from esper.tolaria import regional_compile as regions
from esper.tolaria.regional_compile import Regions
from tests.conftest import tiny_config, use

# Dynamo itself looks at .grad of what a block is given.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(4)
HOST_GRAPHS = 5
"""Stem, head, and three different blocks: layer1 has two equal ones, layer2 one that halves and one that does not."""


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network(*kinds: str) -> MorphableModel:
    torch.manual_seed(0)
    config = ModelConfig(name="resnet_small", widths=[4, 8], depths=[2, 2])
    host = build_host(config, DataSpec(inputs=(3, 8, 8), num_outputs=4))
    return wrap(host, ["layer*"], 9, input_shape=(3, 8, 8), site_kinds=kinds or ("beside", "after"))


def compiled(model: MorphableModel, backend: str | Callable[..., Any] = "eager") -> Regions:
    regional = Regions(backend)  # eager runs the graphs that were traced as they are
    regional.add_host(model.host, list(find_blocks(model.host, ["layer*"])))
    return regional


def gradients(model: MorphableModel) -> dict[str, Tensor]:
    model.train().zero_grad()
    F.cross_entropy(model(IMAGES), LABELS).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_steps_agree(fast: MorphableModel, plain: MorphableModel, regional: Regions) -> None:
    with regional.active():
        mine = gradients(fast)
    theirs = gradients(plain)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def graft(number: int, site: str, blueprint: str) -> Graft:
    return Graft(graft_id=number, site=site, blueprint_id=blueprint, init_seed=number, init_gain=1.0, born_step=0)


def test_equal_blocks_share_a_graph_and_names_stay() -> None:
    fast, plain = network(), network()
    regional = compiled(fast)
    assert list(fast.state_dict()) == list(plain.state_dict())
    for _ in range(3):
        assert_steps_agree(fast, plain, regional)
    assert regional.num_graphs == HOST_GRAPHS


def test_growth_adds_one_graph_and_an_equal_module_none() -> None:
    fast, plain = network(), network()
    regional = compiled(fast)
    assert_steps_agree(fast, plain, regional)
    for number, site in ((1, "layer1.0:after"), (2, "layer1.1:after")):
        entry = graft(number, site, "basic_block")
        for model in (fast, plain):
            model.graft(entry)
        regional.add(fast.slot(site).kernel(entry))
        assert_steps_agree(fast, plain, regional)
        assert_steps_agree(fast, plain, regional)
        assert regional.num_graphs == HOST_GRAPHS + 1


def test_copies_run_compiled_and_share_the_graphs_of_their_sources() -> None:
    num_runs = 0

    def counting(traced: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            nonlocal num_runs
            num_runs += 1
            return traced.forward(*args)

        return run

    fast, plain = network("after"), network("after")
    regional = compiled(fast, counting)
    assert_steps_agree(fast, plain, regional)
    num_before, num_runs = num_runs, 0
    entry = dataclasses.replace(graft(1, "layer1.1:after", "copy"), sources=("layer1.0", "layer1.1"))
    for model in (fast, plain):
        model.graft(entry)
    for block in fast.slot("layer1.1:after").kernel(entry).regions:
        regional.add(block)
    assert_steps_agree(fast, plain, regional)
    assert num_runs == num_before + 2
    assert regional.num_graphs == HOST_GRAPHS


def test_a_module_that_grows_inside_a_compiled_block_is_not_overlooked() -> None:
    fast, plain = network("parallel"), network("parallel")
    regional = compiled(fast)
    assert_steps_agree(fast, plain, regional)
    entry = graft(1, "layer1.0.conv1:parallel", "fold_1x1")
    for model in (fast, plain):
        model.graft(entry)
    assert_steps_agree(fast, plain, regional)
    for model in (fast, plain):
        model.ungraft(entry)
    assert_steps_agree(fast, plain, regional)


def test_only_active_regions_run_compiled() -> None:
    model = network()
    regional = compiled(model)
    with torch.no_grad():
        model.eval()(IMAGES)
    gradients(model)
    assert regional.num_graphs == 0


def test_what_is_compiled_again_and_again_ends_uncompiled_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "MAX_GRAPHS", 2)
    model = network()
    plain = copy.deepcopy(model)
    regional = compiled(model)
    assert_steps_agree(model, plain, regional)
    assert 2 <= regional.num_graphs < HOST_GRAPHS
    notice = regional.notice()
    assert notice is not None
    assert notice[0] == "WARNING"
    assert regional.notice() is None


def test_a_machine_that_cannot_compile_is_told_in_one_line() -> None:
    def broken(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> None:
        raise RuntimeError("no working\ncompiler")

    model = network()
    regional = Regions(broken)
    regional.add_host(model.host, list(find_blocks(model.host, ["layer*"])))
    with (
        pytest.raises(ConfigError, match=r"^compile_model=true: .*no working compiler.*compile_model=false$"),
        regional.active(),
    ):
        model(IMAGES)


@pytest.mark.long
def test_a_compiled_run_trains_and_grows_as_a_plain_one(run_dir: Path, tmp_path: Path) -> None:
    async def losses(trainer: TolariaTrainer) -> list[float]:
        found = [await trainer.train_epoch()]
        for site, blueprint in (("layer2.1:after", "basic_block"), ("layer1.1:after", "copy")):
            grow = AdaptationDecision(should_adapt=True, site=site, blueprint_id=blueprint)
            assert await trainer.handle_adaptation_signal(grow)
            found.append(await trainer.train_epoch())
        return [epoch["loss"] for epoch in found]

    settings: dict[str, Any] = {
        "model__depths": [2, 2],
        "model__site_kinds": ["after"],
        "morphogenetic__policy": "never",
        "morphogenetic__adaptation_cooldown": 0,
    }
    fast = use(tiny_config(compile_model=True, **settings), run_dir, losses)
    plain = use(tiny_config(**settings), tmp_path / "plain", losses)
    assert fast == pytest.approx(plain, rel=1e-4)
