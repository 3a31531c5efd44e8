"""Exporting: what a run grew, loaded into the plain network it claims to be."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import resnet18

from esper.cli import main
from esper.configs import TolariaConfig
from esper.configs.load import to_yaml
from esper.contracts.recipe import Graft
from esper.errors import CheckpointError, RunError
from esper.inference.export import export
from esper.models.resnet_small import SmallResNet
from esper.tolaria import TolariaTrainer
from tests.conftest import tiny_config, use
from tests.inference.conftest import Seen, command

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def train(config: TolariaConfig, run_dir: Path, *kernels: tuple[str, str]) -> Tensor:
    """Train a network that has kernels from the start; returns its logits."""

    async def body(trainer: TolariaTrainer) -> Tensor:
        recipe = [
            Graft(graft_id=i, site=site, blueprint_id=blueprint, init_seed=i, init_gain=1.0, born_step=0)
            for i, (site, blueprint) in enumerate(kernels, start=1)
        ]
        trainer.run.life.rebuild(recipe)
        await trainer.train()
        with torch.no_grad():
            logits: Tensor = trainer.run.model.eval()(IMAGES)
        return logits

    logits = use(config, run_dir, body)
    assert isinstance(logits, Tensor)
    return logits


def described(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "model.json").read_text())
    assert isinstance(content, dict)
    return content


def assert_gives(network: nn.Module, folder: Path, logits: Tensor) -> None:
    network.load_state_dict(load_file(folder / "model.safetensors"))
    with torch.no_grad():
        assert torch.allclose(network.eval()(IMAGES), logits, rtol=1e-5, atol=1e-5)


def test_a_run_with_parallel_kernels_is_exported_as_its_plain_host(run_dir: Path, tmp_path: Path) -> None:
    config = tiny_config(model__site_kinds=["beside", "after", "parallel"], morphogenetic__adaptation_frequency=99,
                         model__seeds_per_layer=9)  # fmt: skip
    logits = train(
        config,
        run_dir,
        ("layer1.0.conv1:parallel", "fold_3x3"),
        ("layer2.0.conv1:parallel", "fold_asymmetric"),
        ("layer2.0.conv2:parallel", "fold_1x1"),
    )
    out = export(run_dir, tmp_path / "out")
    assert_gives(SmallResNet(widths=[4, 8], depths=[1, 1], in_channels=3, num_classes=10), out, logits)
    model_json = described(out)
    assert (model_json["host"], model_json["num_classes"], model_json["not_folded"]) == ("resnet_small", 10, [])
    assert [graft["blueprint_id"] for graft in model_json["recipe"]] == ["fold_3x3", "fold_asymmetric", "fold_1x1"]


def test_resnet10_grown_by_four_residual_blocks_is_exported_as_torchvisions_resnet18(
    run_dir: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        model__name="resnet10",
        model__target_layers=["layer1", "layer2", "layer3", "layer4"],
        morphogenetic__adaptation_frequency=99,
        dataset__num_examples=160,
        optimization__max_epochs=1,
    )
    logits = train(config, run_dir, *((f"layer{i}.0:after", "residual_block") for i in range(1, 5)))
    out = export(run_dir, tmp_path / "out")
    network = resnet18(num_classes=10)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    assert_gives(network, out, logits)
    assert described(out)["depths"] == {"layer1": 2, "layer2": 2, "layer3": 2, "layer4": 2}


def test_what_could_not_be_folded_and_what_became_wider_is_told(run_dir: Path, tmp_path: Path) -> None:
    config = tiny_config(model__site_kinds=["after", "width"], morphogenetic__adaptation_frequency=99)
    train(config, run_dir, ("layer2.0:width", "widen"), ("layer1.0:after", "squeeze_excite"))
    model_json = described(export(run_dir, tmp_path / "out"))
    assert model_json["inner_widths"] == {"layer1": [4], "layer2": [16]}
    assert [graft["site"] for graft in model_json["not_folded"]] == ["layer1.0:after"]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert (
        sum(t.numel() for n, t in tensors.items() if not n.endswith(("mean", "var", "tracked", "alpha")))
        == (model_json["num_parameters"])
    )


def test_the_command_exports_the_newest_checkpoint_or_the_best(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_config(morphogenetic__enable_tamiyo=False, optimization__learning_rate=3.0), run_dir)
    (best,) = (run_dir / "checkpoints").glob("best-*")
    assert best.name != "best-00000018"
    for options, step in (([], 18), (["--best"], int(best.name.removeprefix("best-")))):
        out = tmp_path / str(step)
        with pytest.raises(SystemExit) as ended:
            main(["export", str(run_dir), "--out", str(out), *options])
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"{out}\n"
        assert described(out)["step"] == step


def test_without_a_place_the_export_goes_into_the_folder_of_the_run_once(
    trained: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    out = trained.run_dir / "export"
    try:
        assert command("export", trained.run_dir) == 0
        assert capsys.readouterr().out == f"{out}\n"
        assert described(out)["step"] == 18
        assert command("export", trained.run_dir) == 2
        assert f"{out} already exists and is not an empty folder; choose another with --out" in capsys.readouterr().err
    finally:
        shutil.rmtree(out, ignore_errors=True)


def test_a_network_with_a_live_kernel_is_refused_and_leaves_nothing(run_dir: Path, tmp_path: Path) -> None:
    async def stop_early(trainer: TolariaTrainer) -> None:
        await trainer.train_epoch()
        await trainer.handle_end_of_epoch()
        assert trainer.run.life.num_germinated == 1
        trainer.request_stop("test")
        await trainer.train()

    use(tiny_config(morphogenetic__holding_epochs=2), run_dir, stop_early)
    with pytest.raises(CheckpointError, match=r"the run has not finished; resume it with the same command.*is holding"):
        export(run_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="already exists and is not an empty folder"):
        export(run_dir, tmp_path)


def test_a_place_that_cannot_be_written_is_refused_before_the_work(trained: Seen, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"--out \S+/file/new/out: \S+/file is no folder; choose another place"):
        export(trained.run_dir, tmp_path / "file" / "new" / "out")


def test_a_folder_that_is_no_run_or_has_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        export(tmp_path, tmp_path / "out")
    (tmp_path / "config.yaml").write_text(to_yaml(tiny_config()))
    with pytest.raises(CheckpointError, match="has no complete checkpoint"):
        export(tmp_path, tmp_path / "out")


def test_files_have_the_mode_that_the_umask_asks_for(run_dir: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        train(tiny_config(morphogenetic__enable_tamiyo=False, optimization__max_epochs=1), run_dir)
        export(run_dir, tmp_path / "out", formats=["torchscript"])
    finally:
        os.umask(before)
    (saved,) = (run_dir / "checkpoints").glob("step-*")
    files = [*(tmp_path / "out").iterdir(), *saved.iterdir()]
    assert {file.name for file in files} >= {"model.json", "model.safetensors", "model.torchscript", "state.json"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o640}
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
