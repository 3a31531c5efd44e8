from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from esper.configs import TaskConfig
from esper.contracts.recipe import Graft
from esper.data import DataSpec
from esper.kasmina import MorphableModel, surgery, wrap
from esper.kasmina.modes import reestimate_norms
from esper.models.resnet_small import SmallResNet
from esper.tasks import build_task
from esper.tolaria import TolariaTrainer
from esper.tolaria.evaluate import evaluate
from esper.tolaria.growth.incubation import SCALES, incubate, try_scales
from esper.tolaria.optim import set_learning_rates
from tests.conftest import journal_of, tiny_config, use

IMAGES, LABELS = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 4
TASK = build_task(TaskConfig(), DataSpec(inputs=(3, 8, 8), num_outputs=4), torch.device("cpu"))


def incubating(site: str, *, gain: float = 0.5) -> MorphableModel:
    torch.manual_seed(0)
    host = SmallResNet(widths=[4, 8], depths=[1, 1], in_channels=3, num_classes=4)
    model = wrap(host, ["layer1", "layer2"], input_shape=(3, 8, 8)).train()
    reestimate_norms(model, [IMAGES])
    graft = Graft(graft_id=1, site=site, blueprint_id="basic_block", init_seed=1, init_gain=gain, born_step=0)
    surgery.germinate(model, graft, images=IMAGES, epoch=0)
    return model


def do(model: MorphableModel, site: str, method: str) -> None:
    incubate(model, model.slot(site), IMAGES, LABELS, task=TASK, method=method, context=contextlib.nullcontext())


@pytest.mark.parametrize("site", ["layer1.0:beside", "layer1.0:after"])
@pytest.mark.parametrize("method", ["fit", "shadow"])
def test_incubation_gives_every_kernel_parameter_a_gradient_and_leaves_the_host_bit_identical(
    method: str, site: str
) -> None:
    model = incubating(site)
    before = {name: value.clone() for name, value in model.host.state_dict().items()}
    rng = torch.get_rng_state()
    do(model, site, method)
    kernel = model.slot(site).kernel(model.slot(site).live_graft)
    assert all(p.grad is not None and bool(p.grad.any()) for p in kernel.parameters())
    assert all(p.grad is None for p in model.host.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.host.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())


@pytest.mark.parametrize("method", ["fit", "shadow"])
def test_incubating_lowers_the_loss_of_the_blended_network(method: str) -> None:
    model = incubating("layer1.0:beside")
    slot = model.slot("layer1.0:beside")
    kernel = slot.kernel(slot.live_graft)
    optimizer = torch.optim.SGD(kernel.parameters(), lr=0.1, momentum=0.9)
    for _ in range(80):
        do(model, "layer1.0:beside", method)
        optimizer.step()
        optimizer.zero_grad()
    losses = try_scales(model, slot, lambda: [(IMAGES, LABELS)], TASK)
    assert tuple(losses) == SCALES
    assert losses[0.0] == evaluate(model, [(IMAGES, LABELS)], TASK)[0]
    assert min(losses[scale] for scale in SCALES[1:]) < losses[0.0]


def test_the_loss_after_blending_is_the_one_that_the_scale_search_measured() -> None:
    site = "layer1.0:beside"
    model = incubating(site)
    after = Graft(graft_id=2, site="layer1.0:after", blueprint_id="conv1x1", init_seed=2, init_gain=1.0, born_step=0)
    model.graft(after)
    slot = model.slot(site)
    kernel = slot.kernel(slot.live_graft)
    torch.nn.init.normal_(kernel.get_parameter("norm.bias"))  # as if trained: it must be scaled too
    losses = try_scales(model, slot, lambda: [(IMAGES, LABELS)], TASK)
    kernel.scale_output(0.25)
    surgery.begin_blending(slot, step=0, epoch=0)
    surgery.set_alpha(slot, step=0, blending_steps=0)
    assert evaluate(model, [(IMAGES, LABELS)], TASK)[0] == pytest.approx(losses[0.25], rel=1e-6)


def test_a_cull_elsewhere_leaves_the_statistics_of_an_incubating_kernel() -> None:
    site = "layer1.0:beside"
    model = incubating(site)
    do(model, site, "shadow")
    kernel = model.slot(site).kernel(model.slot(site).live_graft)
    before = {name: buffer.clone() for name, buffer in kernel.named_buffers()}
    reestimate_norms(model, [IMAGES])
    assert all(torch.equal(buffer, before[name]) for name, buffer in kernel.named_buffers())
    assert float(kernel.get_buffer("norm.running_var").std()) > 0


def test_a_run_with_incubation_enters_at_the_best_scale_and_journals_it(run_dir: Path, tmp_path: Path) -> None:
    async def host_weights(trainer: TolariaTrainer) -> dict[str, Tensor]:
        await trainer.train_epoch()
        await trainer.handle_end_of_epoch()
        run = trainer.run
        set_learning_rates(run.optimizer, run.schedule(run.state.global_step), step=run.state.global_step)
        for _ in range(3):  # the steps of the incubation
            trainer.run.growth.before_step()
            trainer.run.step.forward_backward_update(
                epoch=1, index=trainer.run.state.step, step=trainer.run.state.global_step
            )
            trainer.run.state.step += 1
            trainer.run.state.global_step += 1
        weights = {name: value.clone() for name, value in trainer.run.model.host.state_dict().items()}
        await trainer.train()
        return weights

    config = tiny_config(
        morphogenetic__incubation="fit", morphogenetic__incubation_steps=3, morphogenetic__alpha_search=True
    )
    incubated = use(config, run_dir, host_weights)
    alone = use(tiny_config(morphogenetic__enable_tamiyo=False), tmp_path / "alone", host_weights)
    assert all(torch.equal(alone[name], value) for name, value in incubated.items())
    lines = journal_of(run_dir)
    (event,) = [line for line in lines if line["kind"] == "incubation"]
    assert (event["method"], event["num_steps"], event["step"]) == ("fit", 3, 9)
    assert event["losses"][f"{event['alpha']:g}"] == min(event["losses"].values())
    assert lines[-1]["result"]["incubation_macs"] > 0
    states = [line["new"] for line in lines if line["kind"] == "state"]
    assert states[:4] == ["germinated", "training", "blending", "holding"]
