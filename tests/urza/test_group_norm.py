from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from esper import tezzeret


@pytest.mark.parametrize("blueprint_id", ["group_norm", "spatial_self_attention"])
def test_images_that_need_no_gradient_reach_a_group_norm_contiguous_and_are_checked(
    blueprint_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch 2.10 and 2.11 end the process with a segmentation fault otherwise."""
    met: list[Tensor] = []
    forward = nn.GroupNorm.forward
    monkeypatch.setattr(nn.GroupNorm, "forward", lambda self, x: (met.append(x), forward(self, x))[1])
    kernel = tezzeret.build_kernel(
        blueprint_id, in_shape=(16, 4, 4), out_shape=(16, 4, 4), init_seed=0, output_scale=0.5
    )
    images = torch.randn(2, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    assert not tezzeret.check_kernel(kernel, images, (16, 4, 4)).failed
    assert all(x.is_contiguous() for x in met)
    with torch.no_grad():
        kernel(images)
    assert met[-1].is_contiguous(memory_format=torch.channels_last)  # elsewhere, what is computed is as before
