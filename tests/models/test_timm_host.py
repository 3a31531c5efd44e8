"""Networks of timm: they are built for the images at hand, train, grow where they can, and say so where they cannot."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from esper.configs import ModelConfig
from esper.contracts.decisions import AdaptationDecision
from esper.errors import ConfigError
from esper.kasmina import find_sites, wrap
from esper.models import build_host
from esper.tolaria import TolariaTrainer
from tests.conftest import tiny_config, use
from tests.tolaria.test_resume import assert_same, train

timm = pytest.importorskip("timm")


def model(name: str, **changes: object) -> ModelConfig:
    return ModelConfig(**{"source": "timm", "name": name, "target_layers": ["auto"], **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("resnet10t", "layer1.0:beside"),
        ("convnext_atto", "stages.0.blocks.0:beside"),
        ("mobilenetv3_small_050", "blocks.0.0:beside"),
        ("regnetx_002", "s1.b1:beside"),
    ],
)
def test_convolutional_networks_have_sites_under_their_own_names(name: str, first: str) -> None:
    host = build_host(model(name), in_channels=3, image_size=32, num_classes=5)
    assert host(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    sites = find_sites(host, target_layers=["auto"], seeds_per_layer=99, input_shape=(3, 32, 32))
    assert first in [site.name for site in sites]


def test_a_network_of_tokens_cannot_grow_and_says_why() -> None:
    host = build_host(model("vit_tiny_patch16_224"), in_channels=3, image_size=32, num_classes=5)
    with pytest.raises(ConfigError, match=r"tokens.*morphogenetic=off"):
        wrap(host, ["auto"], 4, input_shape=(3, 32, 32))


def test_a_network_of_tokens_trains_as_it_is(run_dir: Path) -> None:
    config = tiny_config(
        model=model("vit_tiny_patch16_224"),
        dataset__image_size=32,
        morphogenetic__enable_tamiyo=False,
        optimization__max_epochs=1,
        optimization__warmup_epochs=0.0,
    )

    async def body(trainer: TolariaTrainer) -> float:
        return (await trainer.train_epoch())["loss"]

    assert use(config, run_dir, body) > 0


def test_a_grown_network_of_timm_resumes_bit_identically(tmp_path: Path) -> None:
    config = tiny_config(model=model("convnext_atto"), dataset__image_size=32)
    whole, growth = train(config, tmp_path / "whole")
    assert growth["num_germinated"] == 1
    train(config, tmp_path / "parts", stop_at=9)
    resumed, _ = train(config, tmp_path / "parts")
    assert_same(whole, resumed)


def test_germinating_in_a_network_of_timm_leaves_its_logits(run_dir: Path) -> None:
    config = tiny_config(model=model("resnet10t"), dataset__image_size=32, morphogenetic__policy="never")

    async def body(trainer: TolariaTrainer) -> None:
        network = trainer.run.model.eval()
        images = torch.randn(2, 3, 32, 32)
        before = network(images)
        decision = AdaptationDecision(should_adapt=True, site="layer2.0:after")
        assert await trainer.handle_adaptation_signal(decision)
        assert network.recipe
        with network.slot("layer2.0:after").silenced():
            assert torch.equal(network(images), before)

    use(config, run_dir, body)


def test_an_unknown_name_is_told_with_what_is_near() -> None:
    with pytest.raises(ConfigError, match=r"^model.name=convnext_ato: .*did you mean convnext_atto.*$"):
        build_host(model("convnext_ato"), in_channels=3, image_size=32, num_classes=5)


def test_a_network_that_cannot_take_such_images_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^model.name=inception_v4: it cannot take images of 16 pixels"):
        build_host(model("inception_v4"), in_channels=3, image_size=16, num_classes=5)


def test_without_timm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'esper-train[timm]'")):
        build_host(model("convnext_atto"), in_channels=3, image_size=32, num_classes=5)
