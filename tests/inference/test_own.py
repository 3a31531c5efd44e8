"""Networks and data of the user's own: only code that the user imports or gives is run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import esper
from esper import plugins
from esper.cli import main
from esper.configs import DatasetConfig, ModelConfig, TolariaConfig
from esper.errors import ConfigError, RunError
from esper.inference.export import export
from tests.conftest import tiny_config
from tests.inference.conftest import Seen, train

MODULE = """
import esper
from torch import nn

@esper.model("own_net")
class Net(nn.Module):
    def __init__(self, spec, width=4):
        super().__init__()
        self.stem = nn.Conv2d(spec.inputs[0], width, 3, padding=1)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, spec.num_outputs)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return x + self.norm(self.conv(x)).relu()
"""


class Rows(nn.Module):
    """A network of rows, given to `fit`, of which two layers share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.second(self.first(x)))
        assert isinstance(y, Tensor)
        return y


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As in another process: nothing is registered."""
    monkeypatch.setattr(plugins, "_registered", {})
    monkeypatch.setattr(plugins, "_loaded", {})
    return monkeypatch


def outputs(seen: Seen, network: esper.inference.Network) -> Tensor:
    return torch.stack([one.output for one in network.predict(seen.test.images)])


def test_a_plugins_network_is_loaded_and_exported_once_its_module_is_imported(
    tmp_path: Path, elsewhere: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_module_of_test.py").write_text(MODULE)
    elsewhere.chdir(tmp_path)
    elsewhere.setattr(sys, "path", [*sys.path])
    elsewhere.delitem(sys.modules, "own_module_of_test", raising=False)
    config = tiny_config(
        plugins=["own_module_of_test"],
        model=ModelConfig(source="plugin", name="own_net", options={"width": 6}, target_layers=["blocks"]),
        morphogenetic__judged=False,
        morphogenetic__blueprint="squeeze_excite",
        model__site_kinds=["after"],
    )
    seen = train(config, tmp_path / "own" / "run")
    assert seen.result["num_grown"] == 1
    out = export(seen.run_dir, tmp_path / "out")
    plugins._registered.clear()
    plugins._loaded.clear()
    del sys.modules["own_module_of_test"]

    for folder in (seen.run_dir, out):
        with pytest.raises(RunError, match=r"import own_module_of_test first \(on the command line: --plugins own_"):
            esper.load(folder)
    assert "own_module_of_test" not in sys.modules
    np.savez(tmp_path / "images.npz", inputs=seen.test.images.numpy(), targets=seen.targets.numpy())
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", str(out), str(tmp_path / "images.npz"), "--plugins", "own_module_of_test", "--json",
              "--device", "cpu"])  # fmt: skip
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(seen.result["test_accuracy"])
    with pytest.raises(SystemExit, match="2"):
        main(["sample", str(out), "--plugins", "own_module_of_test", "--device", "cpu"])
    assert "a network of task=classification cannot write text" in capsys.readouterr().err.splitlines()[-1]
    for folder in (seen.run_dir, out):
        assert torch.allclose(outputs(seen, esper.load(folder)), seen.outputs, atol=1e-5)


def offered(network: type[nn.Module]) -> TolariaConfig:
    """Settings that train a network of one's own on rows of one's own."""
    values = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
    plugins.offer("model", network.__name__, network)
    plugins.offer("dataset", "own_data", lambda: (values, (values[:, 0] > 0).long()))
    return tiny_config(
        model=ModelConfig(source="plugin", name=network.__name__),
        dataset=DatasetConfig(name="plugin", source="own_data", batch_size=8, val_split=0.3),
        morphogenetic__enable_tamiyo=False,
    )


def test_a_network_given_to_fit_is_given_to_load_too(tmp_path: Path, elsewhere: pytest.MonkeyPatch) -> None:
    config = offered(Rows)
    seen = train(config, tmp_path / "own" / "run")
    assert torch.allclose(outputs(seen, esper.load(seen.run_dir)), seen.outputs, atol=1e-6)
    plugins._registered.clear()
    with pytest.raises(
        RunError, match=r"network, Rows, is code of your own: esper.load\('.*', model=Rows\) gives it; or"
    ):
        esper.load(seen.run_dir)
    out = export(seen.run_dir, tmp_path / "out", model=Rows)
    assert "random inputs" in json.loads((out / "model.json").read_text())["checked"]["inputs"]
    for folder in (seen.run_dir, out):
        assert torch.allclose(outputs(seen, esper.load(folder, model=Rows)), seen.outputs, atol=1e-6)


class Weighted(Rows):
    """One with a weight that a hook computes, which is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        nn.utils.weight_norm(self.head)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_network_with_a_weight_that_a_hook_computes_is_exported(
    tmp_path: Path, elsewhere: pytest.MonkeyPatch
) -> None:
    config = offered(Weighted)
    seen = train(config, tmp_path / "own" / "run")
    out = export(seen.run_dir, tmp_path / "out")
    for folder in (seen.run_dir, out):
        assert torch.allclose(outputs(seen, esper.load(folder)), seen.outputs, atol=1e-6)
    plugins.offer("model", "Weighted", Weighted())
    with pytest.raises(ConfigError, match=r"but this one cannot be \(Only Tensors created .*\); give its class, or a"):
        train(config, tmp_path / "own" / "other")
