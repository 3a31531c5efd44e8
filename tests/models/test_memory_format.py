from __future__ import annotations

import pytest
import torch
from torch import nn

from esper.configs import DatasetConfig
from esper.models import memory_format
from tests.conftest import tiny_config, use

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("network", "device", "expected"),
    [
        (nn.Conv2d(8, 16, 1, stride=2), CPU, torch.contiguous_format),
        (nn.Conv2d(32, 32, 1, stride=2, groups=4), CPU, torch.contiguous_format),
        (nn.Conv2d(16, 32, 1, stride=2), CPU, torch.channels_last),
        (nn.Conv2d(8, 16, 1), CPU, torch.channels_last),
        (nn.Conv2d(3, 16, 3, stride=2), CPU, torch.channels_last),
        (nn.Conv2d(8, 16, 1, stride=2), CUDA, torch.channels_last),
    ],
)
def test_a_strided_1x1_convolution_of_few_channels_stays_contiguous_on_a_cpu(
    network: nn.Module, device: torch.device, expected: torch.memory_format
):
    assert memory_format(nn.Sequential(network), channels_last=True, device=device) is expected


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_a_network_with_3d_kernels_stays_contiguous(device: torch.device):
    network = nn.Sequential(nn.Conv3d(2, 2, 3), nn.Flatten(2), nn.Unflatten(2, (8, 8)), nn.Conv2d(2, 2, 3))
    found = memory_format(network, channels_last=True, device=device)
    assert network.to(memory_format=found)[0].weight.is_contiguous()


def test_contiguous_stays_contiguous():
    assert memory_format(nn.Conv2d(64, 64, 1), channels_last=False, device=CPU) is torch.contiguous_format


@pytest.mark.parametrize(("widths", "expected"), [([4, 8], torch.contiguous_format), ([16, 16], torch.channels_last)])
def test_images_have_the_memory_format_of_the_host(tmp_path, widths, expected):
    async def formats(trainer):
        return trainer.run.model.memory_format, next(trainer.run.parts.loader.first_batches(0, 1))

    host, images = use(tiny_config(model__widths=widths), tmp_path / "run", formats)
    assert host is expected
    assert images.is_contiguous(memory_format=expected)


def test_grey_images_have_the_memory_format_of_the_host(tmp_path):
    async def strides(trainer):
        return trainer.run.model.memory_format, next(trainer.run.parts.loader.first_batches(0, 1)).stride()

    config = tiny_config(dataset=DatasetConfig(name="digits", batch_size=32))
    assert use(config, tmp_path / "run", strides) == (torch.contiguous_format, (64, 64, 8, 1))
