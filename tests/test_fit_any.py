"""`fit` with networks that do something unusual."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esper import fit, load
from esper.errors import ConfigError
from esper.inference.export import export
from tests.kasmina.test_tokens import Padded
from tests.test_fit_own import QUICK, Net, squares


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_transformer_with_padding_grows_and_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 5, (120, 6), generator=generator)
    labels = (ids[:, 0] > 2).long()
    ids[torch.arange(6) >= torch.randint(2, 7, (120, 1), generator=generator)] = 0
    settings = ("dataset.normalize=false", "optimization=adamw", "optimization.learning_rate=0.02")
    outcome = fit(*QUICK, *settings, "optimization.max_epochs=6", model=Padded, data=(ids.float(), labels))
    recipe = json.loads((outcome.run_dir / "recipe.json").read_text())
    assert "encoder.layers.1:after" in str(recipe)
    assert outcome.result is not None
    assert outcome.result["test_accuracy"] > 0.8  # by chance: 0.5
    loaded = load(outcome.run_dir, model=Padded)
    assert torch.allclose(loaded(ids.float()), outcome.network(ids.float()), atol=1e-5)


class Versioned(Net):
    """Like torchvision's MNASNet, it reads only weights that say their version."""

    _version = 2

    def _load_from_state_dict(
        self, state: dict[str, Tensor], prefix: str, metadata: dict[str, int], *rest: Any
    ) -> None:
        if metadata.get("version") != 2:
            raise ValueError("version should be 2")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_modules_with_versions_are_resumed_loaded_exported_and_started_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = fit(*QUICK, model=Versioned, data=squares(), run_dir="run")
    checkpoint = min(Path("run/checkpoints").glob("step-*"))
    settings = (*QUICK, "optimization.max_epochs=5")
    resumed = fit(*settings, f"checkpoint.resume_from={checkpoint}", model=Versioned, data=squares(), run_dir="longer")
    started = fit(*settings, "model.init_from=run", model=Versioned, data=squares(), run_dir="started")
    assert resumed.exit_code == started.exit_code == 0
    images = squares()[0]
    expected = load(outcome.run_dir, model=Versioned)(images)
    assert torch.allclose(load(export(Path("run"), Path("out"), model=Versioned), model=Versioned)(images), expected)


class Extra(Net):
    """Its state is more than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


def test_a_network_without_weights_or_with_another_state_is_one_line() -> None:
    with torch.device("meta"):
        network = Net()
    for model in (network, lambda: network):
        with pytest.raises(ConfigError, match=r"model.name=\w+: is on the meta device, without weights"):
            fit(*QUICK, model=model, data=squares())
    for model in (Extra, Extra()):
        with pytest.raises(ConfigError, match=r"model.name=Extra: its state '_extra_state' is a dict .* a buffer"):
            fit(*QUICK, model=model, data=squares())
