"""The training step by itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from esper.configs import DatasetConfig, TaskConfig
from esper.data import DataSpec
from esper.data.images import ImageSet
from esper.data.loader import Preprocess, TrainLoader
from esper.tasks import as_figures, build_task
from esper.tolaria.step import TrainStep

CPU = torch.device("cpu")


def r2_of_a_step(*, accumulate: int) -> float:
    torch.manual_seed(0)
    config = DatasetConfig(name="arrays", batch_size=32)
    data = ImageSet(torch.randn(32, 3), 1e5 + torch.randn(32))
    model = nn.Linear(3, 1)
    nn.init.constant_(model.bias, 1e5)
    task = build_task(TaskConfig(name="regression"), DataSpec(inputs=(3,), num_outputs=1), CPU)
    prepare = Preprocess(mean=(0.0,) * 3, std=(1.0,) * 3, normalize=True, channels_last=False, device=CPU)
    step = TrainStep(
        model=model,
        task=task,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        loader=TrainLoader(data, config, rng_seed=0, prepare=prepare),
        device=CPU,
        autocast_dtype=None,
        clip_norm=None,
        is_captured=False,
        accumulate=accumulate,
    )
    step.forward_backward_update(epoch=0, index=0, step=0)
    loss, *means, _, _ = step.sums.epoch.tolist()
    return as_figures(task.training_metrics, loss, means)["r2"]


def test_parts_of_a_batch_measure_far_numbers_as_the_whole_batch_does() -> None:
    assert r2_of_a_step(accumulate=4) == pytest.approx(r2_of_a_step(accumulate=1), rel=1e-3)
