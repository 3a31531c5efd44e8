"""Training where the device has no float64, as MPS: a fake GPU, whose tensors have shapes and types but no values.

A fake backward pass needs a real GPU; it computes in the types of the forward pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from esper import devices
from esper.build import parts
from esper.data import DataSpec, Mixer, Preprocess, TrainLoader
from esper.data.crop import random_boxes
from esper.kasmina.moments import Moments, group_images
from esper.tasks import build_task
from esper.tasks.regression import build
from esper.tolaria.evaluate import measure
from esper.tolaria.optim import build_optimizer
from esper.tolaria.step import TrainStep
from tests.conftest import tiny_config

GPU = torch.device("cuda:0")


class _RefusesDouble(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.device == GPU:
                assert tensor.dtype is not torch.float64, func
        return output


@pytest.fixture(autouse=True)
def _without_double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_WITHOUT_DOUBLE", ("cuda",))


def test_a_step_and_an_evaluation_use_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    config = tiny_config(dataset__mixup_alpha=0.2, dataset__random_erasing=0.5, dataset__rand_augment_num_ops=2)
    built = parts(config, cache_dir=tmp_path, device=torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True), _RefusesDouble():
        model, splits, task = (
            built.model.to(GPU).train(),
            built.splits.to(GPU),
            build_task(config.task, built.spec, GPU),
        )
        prepare = Preprocess(mean=splits.mean, std=splits.std, normalize=True, channels_last=False, device=GPU)
        mixer = Mixer(config.dataset, rng_seed=0, num_classes=built.spec.num_outputs, device=GPU)
        step = TrainStep(
            model=model,
            task=task,
            optimizer=build_optimizer(config.optimization, model),
            loader=TrainLoader(splits.train, config.dataset, rng_seed=0, prepare=prepare, mixer=mixer),
            device=GPU,
            autocast_dtype=None,
            clip_norm=1.0,
            is_captured=False,
        )
        epoch, index, number = step._position.unbind()
        inputs, targets = step._batch(epoch, index)
        output = model(inputs)
        step._add_measured(task.objective(output, targets), output, targets, output.norm(), number)
        losses, sums = measure(model, prepare.batches(splits.controller, 64), task, with_detail=True)
        judge_losses = devices.in_double(torch.cat(losses))
    assert {tensor.device for tensor in (step.sums.epoch, sums)} == {GPU}
    assert judge_losses.device.type == "cpu"
    assert judge_losses.dtype is torch.float64


def test_neither_do_regression_crops_and_scores() -> None:
    task = build(tiny_config().task, DataSpec(inputs=(3,), num_outputs=2), GPU)
    with FakeTensorMode(), _RefusesDouble():
        numbers = torch.zeros(8, 2, device=GPU)
        for metric in task.metrics:
            if metric.values is not None:
                metric.values(numbers, numbers)
        bits = torch.zeros(4, dtype=torch.int64, device=GPU)
        assert random_boxes(torch.ones(4, 2, dtype=torch.int64, device=GPU), bits).device == GPU
        moments, terms = Moments(), [("all", "x", "x"), ("squares", "x"), ("sum", "x")]
        for first in (0, 16):
            batch = group_images(16, first=first, device=GPU)
            moments.add({"x": torch.zeros(16, 4, device=GPU)}, terms, batch)
        assert moments.total(("all", "x", "x")).device.type == "cpu"
