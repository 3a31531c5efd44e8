"""Which device a setting selects, decided from what torch finds, and what is told about it."""

from __future__ import annotations

import pytest
import torch

from esper.configs import TolariaConfig
from esper.configs.check import check, check_group
from esper.devices import Machine, choose, hints
from esper.errors import ConfigError

NOTHING = Machine()
FOUR = Machine(num_gpus=4)
MAC = Machine(has_mps=True, is_cuda_build=False)


@pytest.mark.parametrize(
    ("name", "here", "device"),
    [
        ("auto", NOTHING, "cpu"),
        ("auto", FOUR, "cuda"),
        ("auto", MAC, "cpu"),
        ("cpu", FOUR, "cpu"),
        ("cuda", FOUR, "cuda"),
        ("cuda:3", FOUR, "cuda:3"),
        ("mps", MAC, "mps"),
    ],
)
def test_a_setting_selects_a_device_that_is_there(name: str, here: Machine, device: str):
    assert choose(name, here) == torch.device(device)


@pytest.mark.parametrize(
    ("name", "here", "line"),
    [
        ("cuda", NOTHING, "device=cuda: this machine has no usable CUDA device; there are auto, cpu"),
        ("cuda:0", Machine(is_cuda_build=False), "no usable CUDA device, as torch is a CPU build; there are auto, cpu"),
        ("cuda", Machine(visible=""), "CUDA_VISIBLE_DEVICES='' shows none: unset it; there are auto, cpu"),
        ("cuda:1", Machine(visible="7"), "CUDA_VISIBLE_DEVICES='7' shows none: unset it; there are auto, cpu"),
        ("cuda:1", Machine(num_gpus=1), "no such CUDA device; there are auto, cpu, cuda, cuda:0"),
        (
            "cuda:2",
            Machine(num_gpus=2, visible="4,5"),
            "as CUDA_VISIBLE_DEVICES='4,5' shows only these, numbered from 0; there are auto, cpu, cuda, cuda:0 to",
        ),
        (
            "mps",
            FOUR,
            "no usable MPS device, which takes a Mac with Apple silicon; there are auto, cpu, cuda, cuda:0 to",
        ),
        ("cuda", MAC, "as torch is a CPU build; there are auto, cpu, mps"),
        ("meta", NOTHING, "device=meta: no such device; there are auto, cpu"),
        ("cuda:", FOUR, "no such CUDA device"),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str, here: Machine, line: str):
    with pytest.raises(ConfigError) as refused:
        choose(name, here)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_ranks_share_no_device_by_number_and_no_mps():
    assert choose("cuda", FOUR, num_ranks=4) == torch.device("cuda")
    with pytest.raises(ConfigError, match="4 ranks train, each on a GPU of its own; use device=cuda, and choose"):
        choose("cuda:1", FOUR, num_ranks=4)
    with pytest.raises(ConfigError, match="a single process trains there, not 2 ranks"):
        choose("mps", MAC, num_ranks=2)


@pytest.mark.parametrize("name", ["cuda:0", "cuda:15", "mps"])
def test_a_configuration_may_name_a_device_that_this_machine_lacks(name: str):
    check_group(TolariaConfig(device=name))


@pytest.mark.parametrize("setting", ["mixed_precision", "compile_model"])
def test_what_is_not_there_for_mps_is_refused(setting: str):
    with pytest.raises(ConfigError, match=f"{setting}=true: device=mps trains in float32, uncompiled"):
        check(TolariaConfig(device="mps", **{setting: True}))


@pytest.mark.parametrize("name", ["cuda:", "cuda:01", "cuda:-1", "cuda:N", "CUDA", "gpu", "meta", "xpu", "cuda:1 ", ""])
def test_a_mistyped_device_is_refused_with_the_allowed_ones(name: str):
    with pytest.raises(ConfigError, match=r"device=.*: allowed are auto, cpu, cuda, cuda:N, mps"):
        check_group(TolariaConfig(device=name))


@pytest.mark.parametrize(
    ("name", "here", "num_ranks", "told"),
    [
        ("auto", NOTHING, 1, None),
        ("auto", Machine(num_gpus=1), 1, None),
        (
            "auto",
            FOUR,
            1,
            "trains on one of 4 GPUs, cuda:0; on another: device=cuda:N; on all: torchrun --nproc-per-node 4",
        ),
        ("cuda:2", FOUR, 1, "trains on one of 4 GPUs, cuda:2"),
        ("auto", FOUR, 4, None),
        ("cpu", FOUR, 1, None),
        ("auto", Machine(visible=""), 1, "trains on the CPU: CUDA_VISIBLE_DEVICES='' shows no GPU"),
        ("cpu", Machine(visible=""), 1, None),
        ("auto", Machine(visible="", is_cuda_build=False), 1, None),
        ("auto", MAC, 1, "trains on the CPU; device=mps would use"),
        ("mps", MAC, 1, "device=mps is untested: it trains in float32"),
    ],
)
def test_a_run_tells_which_devices_it_leaves_idle(name: str, here: Machine, num_ranks: int, told: str | None):
    lines = list(hints(name, choose(name, here, num_ranks=num_ranks), here, num_ranks=num_ranks))
    assert len(lines) == (told is not None)
    assert told is None or lines[0].startswith(told)
