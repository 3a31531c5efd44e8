"""Settings are checked against their declarations and each other; the message says what to do."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from esper.configs import TolariaConfig
from esper.configs.check import check
from esper.errors import ConfigError


def changed(**changes: Any) -> TolariaConfig:
    """The default configuration with `group__field=value` or `field=value`."""
    config = TolariaConfig()
    for key, value in changes.items():
        group, _, field = key.rpartition("__")
        setattr(getattr(config, group) if group else config, field, value)
    return config


def refusal(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check(changed(**changes))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_defaults_pass():
    check(TolariaConfig())


def test_a_number_out_of_range_is_named_with_its_bound():
    assert refusal(optimization__max_epochs=0) == "optimization.max_epochs=0: allowed is at least 1"


def test_an_unknown_choice_gets_the_nearest_one():
    message = refusal(optimization__scheduler="cosin")
    assert "allowed are constant, cosine, linear, wsd" in message
    assert message.endswith("did you mean cosine?")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_refused(value):
    assert "optimization.learning_rate" in refusal(optimization__learning_rate=value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optimization__max_epochs", "3", "a whole number"),
        ("optimization__max_epochs", True, "a whole number"),
        ("optimization__max_epochs", None, "a whole number"),
        ("optimization__learning_rate", "fast", "a number"),
        ("checkpoint__save_best", 1, "true or false"),
        ("model__widths", 16, "a list, each a whole number"),
        ("model__name", 18, "text"),
        ("model", None, "a group of settings"),
    ],
)
def test_a_wrong_type_is_refused_with_the_expected_one(key, value, expected):
    assert refusal(**{key: value}).endswith(f"must be {expected}")


@pytest.mark.parametrize(
    ("optimizer", "options", "expected"),
    [
        ("adam", {"beta": [0.9, 0.99]}, "options of adam are betas, eps, .*; did you mean betas?"),
        ("adam", {"lr": 0.1}, "options of adam are"),
        ("adam", {"betas": 0.9}, r"must be 2 numbers, such as \[0.9, 0.999\]"),
        ("adam", {"betas": [0.9]}, "must be 2 numbers"),
        ("adam", {"eps": math.nan}, "must be a number, such as 1e-08"),
        ("adam", {"amsgrad": 1}, "must be true or false, such as false"),
        ("muon", {"ns_steps": 5.5}, "must be a whole number, such as 5"),
        ("sgd", {"dampening": 0.1}, "options of sgd are none"),
    ],
)
def test_optimizer_options_are_those_of_the_optimizer(optimizer, options, expected):
    message = refusal(optimization__optimizer=optimizer, optimization__optimizer_options=options)
    assert re.match(rf"optimization.optimizer_options.{next(iter(options))}=.*: {expected}", message)


def test_a_batch_is_accumulated_in_parts_of_two_examples_at_least():
    check(changed(dataset__batch_size=32, optimization__accumulate=16))
    message = refusal(dataset__batch_size=32, optimization__accumulate=17)
    assert message.startswith("optimization.accumulate=17: splits each batch of dataset.batch_size=32")
    assert "at most 16" in message


@pytest.mark.parametrize("key", ["model.gradient_checkpointing", "compile_model"])
def test_synchronised_batch_norm_is_refused_where_layers_run_elsewhere(key):
    message = refusal(ranks__sync_batch_norm=True, **{key.replace(".", "__"): True})
    assert message == f"ranks.sync_batch_norm=true: does not go with {key}=true; set one of the two to false"


@pytest.mark.parametrize("key", ["mixup_alpha", "cutmix_alpha", "random_erasing", "rand_augment_num_ops"])
def test_what_is_for_images_is_refused_for_text(key):
    text = {"dataset__name": "python_source", "task__name": "language_model", "model__name": "gpt"}
    message = refusal(**text, morphogenetic__enable_tamiyo=False, **{f"dataset__{key}": 1})
    assert message.startswith(f"dataset.{key}=1: is for images")


def test_only_classes_are_mixed():
    check(changed(task__name="multilabel", dataset__random_erasing=0.5))
    message = refusal(task__name="multilabel", dataset__mixup_alpha=0.5)
    assert message.startswith("dataset.mixup_alpha=0.5: mixes classes, but task=multilabel")


def test_an_optimizer_that_does_not_fit_is_refused_with_those_that_do():
    assert refusal(optimization__optimizer="lbfgs").startswith(
        "optimization.optimizer=lbfgs: allowed are adadelta, adafactor"
    )


def test_list_items_are_checked():
    assert refusal(model__widths=[16, 0, 64]).startswith("model.widths[1]=0: allowed is at least 1")


def test_optional_settings_accept_null():
    check(changed(optimization__patience=None, dataset__num_examples=None))


@pytest.mark.parametrize(("scheduler", "latest"), [("wsd", 0.7), ("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_growth_must_end_before_the_learning_rate_decays(scheduler, latest):
    check(changed(optimization__scheduler=scheduler, morphogenetic__growth_until=latest))
    if latest < 1:
        message = refusal(optimization__scheduler=scheduler, morphogenetic__growth_until=latest + 0.05)
        assert f"optimization.scheduler={scheduler}" in message


@pytest.mark.parametrize("off", [{"morphogenetic__enable_tamiyo": False}, {"morphogenetic__policy": "never"}])
def test_without_growth_any_schedule_is_accepted(off):
    check(changed(optimization__scheduler="cosine", **off))


@pytest.mark.parametrize("times", [[], [0.2, 0.61]])
def test_scheduled_growth_needs_times_before_growth_until(times):
    message = refusal(morphogenetic__policy="schedule", morphogenetic__schedule_at=times)
    assert "morphogenetic.growth_until=0.6" in message


def test_a_learned_policy_without_a_file_says_how_to_make_one(tmp_path: Path):
    missing = str(tmp_path / "policy.safetensors")
    message = refusal(morphogenetic__policy="learned", morphogenetic__tamiyo_policy_path=missing)
    assert "esper simic" in message
    Path(missing).touch()
    check(changed(morphogenetic__policy="learned", morphogenetic__tamiyo_policy_path=missing))


@pytest.mark.parametrize(("key", "policy"), [("tamiyo_policy_path", "learned"), ("recipe_path", "replay")])
@pytest.mark.parametrize("used", ["heuristic", "never"])
def test_a_file_that_the_policy_does_not_read_is_refused(key, policy, used):
    settings = {f"morphogenetic__{key}": "mine", "morphogenetic__policy": used}
    assert f"morphogenetic.{key}=mine: read with morphogenetic.policy={policy} only" in refusal(**settings)


def test_widths_and_depths_have_the_same_length():
    assert "model.depths" in refusal(model__name="resnet_small", model__widths=[8, 16])


@pytest.mark.parametrize("name", ["resnet10", "resnet_small"])
def test_pretrained_needs_a_host_that_has_weights(name):
    assert f"{name} has no pretrained weights; use model=resnet18" in refusal(model__pretrained=True, model__name=name)


def test_pretrained_weights_need_their_stem():
    assert "pretrained weights have an imagenet stem" in refusal(model__pretrained=True, model__stem="cifar")


def test_warm_up_ends_before_training_does():
    assert "optimization.warmup_epochs" in refusal(optimization__max_epochs=5, optimization__warmup_epochs=5.0)


def test_the_checkpoint_to_resume_from_exists(tmp_path: Path):
    assert "no such folder" in refusal(checkpoint__resume_from=str(tmp_path / "step-1"))
    assert "no manifest.json" in refusal(checkpoint__resume_from=str(tmp_path))
    (tmp_path / "manifest.json").touch()
    check(changed(checkpoint__resume_from=str(tmp_path)))


def test_an_image_folder_needs_train_and_val_or_test(tmp_path: Path):
    folder = {"dataset__name": "imagefolder", "dataset__data_dir": str(tmp_path)}
    (tmp_path / "train").mkdir()
    assert "val/ or test/" in refusal(**folder)
    (tmp_path / "test").mkdir()
    check(changed(**folder))


def test_streaming_needs_image_files_and_an_image_size(tmp_path):
    assert "dataset.storage=stream: cifar10 has no image files" in refusal(dataset__storage="stream")
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
    folder = {"dataset__name": "imagefolder", "dataset__data_dir": str(tmp_path), "dataset__storage": "stream"}
    assert "dataset.image_size=null" in refusal(**folder)
    assert "dataset.image_size=null" in refusal(**folder | {"dataset__name": "imagenet", "dataset__storage": "auto"})
    sized = folder | {"dataset__image_size": 64}
    assert "canvas_size=60: allowed is at least dataset.image_size=64" in refusal(**sized, dataset__canvas_size=60)
    check(changed(**sized, dataset__canvas_size=64, dataset__num_workers=0))


def test_recomputed_blocks_are_not_compiled():
    assert "cannot be compiled" in refusal(model__gradient_checkpointing=True, compile_model=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset__name": "python_source"}, "model=resnet18: reads images, but dataset=python_source is text"),
        ({"model__name": "gpt"}, "model=gpt: reads text, but dataset=cifar10 is not; use dataset=python_source"),
        ({"task__name": "language_model"}, "task=language_model: dataset=cifar10 is no text"),
        (
            {"dataset__name": "python_source", "model__name": "gpt"},
            "task=classification: dataset=python_source",
        ),
        ({"task__name": "language_model", "dataset__epoch_windows": 100}, "at least one batch, dataset.batch_size=128"),
        ({"task__name": "language_model", "dataset__tokenizer": "no.json"}, "dataset.tokenizer=no.json: no such file"),
        ({"task__name": "language_model", "dataset__name": "text", "dataset__data_dir": "no"}, "data_dir=no: no such"),
        ({"task__name": "language_model", "model__heads": 5}, "heads share model.width=192; allowed are its divisors"),
        (
            {"task__name": "language_model", "model__positions": "rotary", "model__width": 9},
            "model.positions=rotary: rotates pairs of features, but a head has 3",
        ),
    ],
)
def test_text_needs_a_network_and_a_task_for_text(changes, message):
    if "task__name" in changes and len(changes) > 1:
        changes = {"dataset__name": "python_source", "model__name": "gpt"} | changes
    assert message in refusal(**changes)


def test_padding_is_smaller_than_the_image():
    digits = {"dataset__name": "digits", "dataset__crop_padding": 8}
    assert "below the images' side, 8" in refusal(**digits)
    check(changed(**digits, dataset__use_augmentation=False))


@pytest.mark.parametrize("name", ["", "..", "../up", "a/b", "a..b", "-x", ".hidden", "a b", "x" * 65, "a\n"])
def test_an_experiment_name_cannot_leave_its_folder(name):
    assert "experiment_name" in refusal(experiment_name=name)


def test_a_password_in_the_tracking_uri_is_refused_and_not_repeated():
    message = refusal(tracking__uri="https://me:CANARY@tracker.example/")
    assert "MLFLOW_TRACKING_PASSWORD" in message
    assert "CANARY" not in message


@pytest.mark.parametrize("name", ["wandb", "both"])
def test_missing_wandb_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "pip install 'esper-train[wandb]'" in refusal(tracking__name=name)


def test_checking_changes_nothing():
    config = changed(model__widths=[4, 8, 16])
    before = dataclasses.asdict(config)
    check(config)
    assert dataclasses.asdict(config) == before


def test_growth_needs_a_kind_of_site_outside_recomputed_blocks():
    assert refusal(model__site_kinds=[]).startswith("model.site_kinds=[]: nothing may grow")
    inside = ["after", "parallel", "width"]
    assert "(parallel, width in model.site_kinds)" in refusal(
        model__gradient_checkpointing=True, model__site_kinds=inside
    )
    check(changed(model__gradient_checkpointing=True))


@pytest.mark.parametrize("arm", ["grown", "static", "random"])
def test_a_comparison_refuses_early_stopping(arm):
    off = {"morphogenetic__enable_tamiyo": False} if arm == "static" else {}
    policy = {"morphogenetic__policy": "random"} if arm == "random" else {}
    check(changed(comparison__arm=arm, **off, **policy))
    told = refusal(comparison__arm=arm, optimization__patience=3, **off, **policy)
    assert told.startswith("optimization.patience=3: with early stopping the arms")


@pytest.mark.parametrize(
    ("arm", "growth", "told"),
    [
        ("static", {}, "enable_tamiyo=true: comparison.arm=static does not grow"),
        ("grown", {"morphogenetic__enable_tamiyo": False}, "comparison.arm=grown needs growth"),
        ("random", {}, "policy=heuristic: comparison.arm=random is policy=random"),
    ],
)
def test_an_arm_with_settings_of_another_arm_is_refused(arm, growth, told):
    assert told in refusal(comparison__arm=arm, **growth)


def test_an_arm_that_gets_its_budget_at_launch_may_grow_by_compute():
    by_compute = {"morphogenetic__policy": "random", "morphogenetic__schedule_by": "compute"}
    check(changed(**by_compute, comparison__arm="random"))
    assert "is not known beforehand; set optimization.max_macs" in refusal(**by_compute)
    assert "set optimization.max_macs" in refusal(**by_compute, comparison__arm="grown")


def test_only_the_arm_in_between_replays_a_part_of_the_recipe():
    replay, part = {"morphogenetic__policy": "replay"}, {"morphogenetic__recipe_fraction": 0.5}
    check(changed(**replay, **part, comparison__arm="between_flops"))
    assert "recipe_fraction=0.5: allowed is 1 with" in refusal(**replay, **part, comparison__arm="final")
    assert "recipe_fraction=1: allowed is below 1 with" in refusal(**replay, comparison__arm="between_flops")


def test_replay_needs_a_recipe_unless_it_is_set_at_launch(tmp_path):
    replay = {"morphogenetic__policy": "replay"}
    assert "recipe_path=None: policy=replay needs a recipe" in refusal(**replay)
    assert "needs a recipe" in refusal(**replay, morphogenetic__recipe_path=str(tmp_path))
    check(changed(**replay, comparison__arm="final"))
    (tmp_path / "recipe.json").touch()
    check(changed(**replay, morphogenetic__recipe_path=str(tmp_path), morphogenetic__growth_until=1.0))
    check(changed(**replay, morphogenetic__recipe_path=str(tmp_path / "recipe.json")))


def test_growth_begins_before_it_ends():
    told = refusal(morphogenetic__growth_from=0.6)
    assert told == "morphogenetic.growth_from=0.6: allowed is below morphogenetic.growth_until=0.6"


def test_plateau_epochs_needs_growth_from():
    assert "plateau_epochs=3: lets growth begin before" in refusal(morphogenetic__plateau_epochs=3)
    check(changed(morphogenetic__plateau_epochs=3, morphogenetic__growth_from=0.3))


def test_forks_need_the_heuristic_policy_except_in_arms():
    forks = {"morphogenetic__fork_steps": 50}
    check(changed(**forks))
    assert "fork_steps=50: policy=random" in refusal(**forks, morphogenetic__policy="random")
    check(changed(**forks, morphogenetic__policy="random", comparison__arm="random"))
