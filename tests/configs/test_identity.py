"""The same settings are the same run; the name of a run folder is safe for any input."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.configs import TolariaConfig
from esper.configs.identity import digest, run_name

CONFIG = TolariaConfig()


def test_a_digest_is_eight_hex_digits_and_stable():
    assert digest(TolariaConfig()) == digest(TolariaConfig())
    assert re.fullmatch(r"[0-9a-f]{8}", digest(CONFIG))


def test_settings_that_change_training_change_the_digest():
    synchronised = TolariaConfig()
    synchronised.ranks.sync_batch_norm = True
    assert len({digest(CONFIG), digest(TolariaConfig(rng_seed=1)), digest(synchronised)}) == 3


def test_operational_settings_do_not_change_the_digest():
    config = TolariaConfig(device="cpu", description="x", tags=["y"], fresh=True, debug_mode=True, experiment_name="e")
    config.logging.log_interval = 7
    config.tracking.name = "none"
    config.checkpoint.max_checkpoints = 9
    config.dataset.num_workers = 0
    config.ranks.timeout_s = 5.0
    assert digest(config) == digest(CONFIG)


def test_1_and_1_0_have_the_same_digest():
    config = TolariaConfig()
    config.optimization.warmup_epochs = 1
    assert digest(config) == digest(CONFIG)


def test_a_large_rng_seed_is_not_rounded():
    assert digest(TolariaConfig(rng_seed=2**60)) != digest(TolariaConfig(rng_seed=2**60 + 1))


def test_a_name_is_the_sorted_overrides_and_the_digest():
    name = run_name(CONFIG, ["rng_seed=1", "morphogenetic=off"])
    assert name == f"morphogenetic_off-rng_seed_1-{digest(CONFIG)}"


def test_operational_overrides_are_not_in_the_name():
    apart = ["logging.log_interval=5", "tracking=none", "fresh=true", "device=cpu", "dry_run=true", "hydra.run.dir=x"]
    assert run_name(CONFIG, [*apart, "dataset.num_workers=2"]) == f"run-{digest(CONFIG)}"


def test_paths_are_not_in_the_readable_part_of_the_name():
    assert run_name(CONFIG, ["morphogenetic.recipe_path=outputs/a/b", "arm=final"]) == f"arm_final-{digest(CONFIG)}"


def test_values_are_written_as_in_sweeps():
    assert run_name(CONFIG, ["model.pretrained=true"]) == run_name(CONFIG, ["model.pretrained=True"])


@pytest.mark.parametrize("value", ["../../etc", "a/../b", "..", "'x; rm'", "'" + "y" * 300 + "'", "[a,'b c']"])
def test_a_name_never_leaves_its_folder(value):
    name = run_name(CONFIG, [f"dataset.data_dir={value}"])
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,98}", name)
    assert ".." not in name


@given(st.text(st.characters(exclude_characters="'\\", exclude_categories=["Cs"]), max_size=200))
def test_any_text_makes_a_harmless_name(text):
    name = run_name(CONFIG, [f"description_='{text}'"])
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,98}", name)
    assert ".." not in name
