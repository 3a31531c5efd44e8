"""timm's networks are built for the size of the images, train, and grow if their layout allows it."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from esper import costs
from esper.build import parts
from esper.configs import ModelConfig
from esper.configs.check import check
from esper.configs.model import SITE_KINDS
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.recipe import Graft
from esper.data import DataSpec
from esper.errors import ConfigError, SurgeryError
from esper.inference.export import export
from esper.kasmina import find_blocks, find_sites, surgery, wrap
from esper.models import build_host, checkpoint_blocks
from esper.tolaria import TolariaTrainer
from tests.conftest import tiny_config, use
from tests.tolaria.checkpoints.test_resume import assert_same, train

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
    host = build_host(model(name), DataSpec(inputs=(3, 32, 32), num_outputs=5))
    assert host(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    sites = find_sites(host, target_layers=["auto"], seeds_per_layer=99, input_shape=(3, 32, 32))
    assert first in [site.name for site in sites]


def test_blocks_of_tokens_have_sites_and_swin_s_with_channels_last_have_none() -> None:
    spec = DataSpec(inputs=(3, 32, 32), num_outputs=5)
    host = build_host(model("vit_tiny_patch16_224"), spec)
    sites = find_sites(host, target_layers=["auto"], seeds_per_layer=99, input_shape=(3, 32, 32), kinds=SITE_KINDS)
    assert [site.name for site in sites if site.block == "blocks.0"] == [
        "blocks.0:beside", "blocks.0:after", "blocks.0:width",
    ]  # fmt: skip
    assert {site.out_shape for site in sites} == {(5, 192)}
    assert not sites[0].is_causal
    swin = build_host(model("swin_tiny_patch4_window7_224"), DataSpec(inputs=(3, 64, 64), num_outputs=5))
    with pytest.raises(ConfigError, match=r"channels last.*morphogenetic=off"):
        wrap(swin, ["auto"], 4, input_shape=(3, 64, 64))


def test_a_transformer_trains_without_growth(run_dir: Path) -> None:
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


def test_a_grown_timm_network_resumes_bit_identically(tmp_path: Path) -> None:
    config = tiny_config(model=model("convnext_atto"), dataset__image_size=32)
    whole, growth = train(config, tmp_path / "whole")
    assert growth["num_germinated"] == 1
    train(config, tmp_path / "parts", stop_at=9)
    resumed, _ = train(config, tmp_path / "parts")
    assert_same(whole, resumed)


def test_every_stage_of_a_timm_network_doubles_resumes_and_is_exported(tmp_path: Path) -> None:
    config = tiny_config(
        model=model("test_convnext", site_kinds=["after"], seeds_per_layer=64),
        dataset__image_size=32,
        morphogenetic__policy="stack",
        morphogenetic__blueprint_categories=["copy"],
        morphogenetic__max_adaptations_per_epoch=8,
        morphogenetic__judged=False,
    )
    whole, growth = train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_at=8)
    resumed, _ = train(config, tmp_path / "parts")
    assert_same(whole, resumed)
    assert [len(graft.sources) for graft in growth["recipe"]] == [1, 2, 4, 2]
    out = export(tmp_path / "parts", tmp_path / "out")
    assert json.loads((out / "model.json").read_text())["not_folded"] == []
    names = load_file(out / "model.safetensors")
    blocks = [name for name in names if re.fullmatch(r"stages\.\d\.blocks\.\d\.norm\.weight", name)]
    assert len(blocks) == 2 * (1 + 2 + 4 + 2)


def test_a_stage_of_one_block_is_refused_with_the_stages_that_have_more() -> None:
    config = tiny_config(
        model=model("regnetx_002", site_kinds=["after"], seeds_per_layer=64),
        dataset__image_size=32,
        morphogenetic__policy="stack",
        morphogenetic__blueprint_categories=["copy"],
    )
    with pytest.raises(ConfigError, match=r"no block of s1 .*or model\.target_layers=\[s3\.\*,s4\.\*\]\), "):
        parts(config, cache_dir=Path())


@pytest.mark.parametrize(("name", "is_refused"), [("resnet18", False), ("resnetv2_50", False), ("test_convnext", True)])
def test_zeroed_copies_are_refused_where_no_batch_norm_turns_a_block_off(name: str, is_refused: bool) -> None:
    config = tiny_config(
        model=model(name, site_kinds=["after"], seeds_per_layer=64),
        dataset__image_size=32,
        morphogenetic__policy="stack",
        morphogenetic__blueprint_categories=["copy"],
        morphogenetic__copy_init="zeroed",
    )
    refused = pytest.raises(ConfigError, match=r"copy_init=zeroed: \S+ has no last batch norm")
    with refused if is_refused else contextlib.nullcontext():
        parts(config, cache_dir=Path())


def test_germinating_in_a_timm_network_leaves_logits_bit_identical(run_dir: Path) -> None:
    config = tiny_config(model=model("resnet10t"), dataset__image_size=32, morphogenetic__policy="never")

    async def body(trainer: TolariaTrainer) -> None:
        network = trainer.run.model.eval()
        images = torch.randn(2, 3, 32, 32)
        before = network(images)
        decision = AdaptationDecision(should_adapt=True, site="layer2.0:after")
        assert await trainer.handle_adaptation_signal(decision)
        assert network.recipe
        with network.slot("layer2.0:after").live_kernel_disabled():
            assert torch.equal(network(images), before)

    use(config, run_dir, body)


def test_a_block_that_does_not_end_in_relu_takes_no_residual_block() -> None:
    host = build_host(model("convnext_atto"), DataSpec(inputs=(3, 32, 32), num_outputs=5))
    network = wrap(host, ["auto"], 4, input_shape=(3, 32, 32))
    site = "stages.1.blocks.0:after"
    graft = Graft(graft_id=1, site=site, blueprint_id="residual_block", init_seed=0, init_gain=0.0, born_step=0)
    with pytest.raises(SurgeryError, match="would clip negative values"):
        surgery.germinate(network, graft, images=torch.randn(2, 3, 32, 32), epoch=0)
    assert not network.recipe


def test_the_network_must_be_named() -> None:
    with pytest.raises(ConfigError, match=r"^model=timm: which network\? Add model.name=NAME"):
        check(tiny_config(model=model("")))


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"^model.name=convnext_ato: .*did you mean convnext_atto.*$"):
        build_host(model("convnext_ato"), DataSpec(inputs=(3, 32, 32), num_outputs=5))


def test_a_network_that_cannot_take_such_images_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^model.name=inception_v4: cannot take images of 16 pixels"):
        build_host(model("inception_v4"), DataSpec(inputs=(3, 16, 16), num_outputs=5))


def test_weights_that_cannot_be_downloaded_are_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^model.pretrained=true: timm cannot load weights for resnet10t .*$"):
        build_host(model("resnet10t", pretrained=True), DataSpec(inputs=(3, 32, 32), num_outputs=5))


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_recomputed_blocks_give_the_same_gradients(name: str) -> None:
    plain = build_host(model(name), DataSpec(inputs=(3, 32, 32), num_outputs=5))
    saving = copy.deepcopy(plain)
    checkpoint_blocks([saving.get_submodule(block) for block in find_blocks(saving, ["auto"])])
    images = torch.randn(4, 3, 32, 32)
    for network in (plain, saving):
        network(images).logsumexp(1).sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(plain.parameters(), saving.parameters(), strict=True))
    assert all(map(torch.equal, plain.buffers(), saving.buffers()))


def test_macs_include_attention() -> None:
    host = build_host(model("vit_tiny_patch16_224"), DataSpec(inputs=(3, 64, 64), num_outputs=5))
    tokens, width, depth = 4 * 4 + 1, 192, 12
    projections = depth * tokens * 12 * width**2
    attention = depth * 2 * tokens**2 * width
    ends = 16 * (3 * 16**2) * width + width * 5
    assert costs.count(host, (3, 64, 64)).num_macs == projections + attention + ends


def test_timm_loads_an_exported_network(run_dir: Path, tmp_path: Path) -> None:
    config = tiny_config(
        model=model("resnet10t", site_kinds=["parallel"]), dataset__image_size=32, morphogenetic__judged=False
    )
    _, growth = train(config, run_dir)
    assert growth["num_germinated"] == 1
    out = export(run_dir, tmp_path / "out")
    told = json.loads((out / "model.json").read_text())
    assert (told["host"], told["num_classes"], told["not_folded"]) == ("resnet10t", 10, [])
    timm.create_model("resnet10t", num_classes=10).load_state_dict(load_file(out / "model.safetensors"))


def test_without_timm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'esper-train[timm]'")):
        build_host(model("convnext_atto"), DataSpec(inputs=(3, 32, 32), num_outputs=5))
