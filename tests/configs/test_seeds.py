"""Every seed up to 2^63 - 1 gives its own random numbers; those below 2^32 stay as they were."""

from __future__ import annotations

import pytest
import torch

from esper import fit
from esper.configs import derive_seed, torch_seed
from esper.data.loader import epoch_order
from esper.errors import ConfigError
from tests.conftest import tiny_config


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_seeds_below_2_to_the_32_keep_their_numbers(seed):
    assert torch_seed(seed) == seed
    assert derive_seed(seed, 7) == seed * 1_000_003 + 7


@pytest.mark.parametrize("seed", [5, 2**40, 20261127162210, 2**62])
def test_seeds_that_differ_by_2_to_the_32_shuffle_differently(seed):
    assert not torch.equal(epoch_order(50, epoch=0, rng_seed=seed), epoch_order(50, epoch=0, rng_seed=seed + 2**32))


@pytest.mark.parametrize("seed", [20261127162210, 2**63 - 1])
def test_a_run_of_a_large_seed_trains_and_grows(tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    outcome = fit(config=tiny_config(rng_seed=seed))
    assert outcome.result is not None
    assert outcome.result["num_grown"] == 1


def test_a_seed_beyond_is_refused():
    with pytest.raises(ConfigError, match=r"rng_seed=9223372036854775808: allowed is .* at most 9223372036854775807"):
        fit(f"rng_seed={2**63}")
