"""What MLflow loads predicts what `esper.load` does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException

import esper
from esper import plugins
from esper.configs import DatasetConfig, ModelConfig, TaskConfig
from esper.errors import DataError
from esper.inference.export import export
from esper.inference.mlflow_model import save_model
from tests.conftest import tiny_config, use
from tests.inference.conftest import Seen, train
from tests.text import text_config, write_texts


def loaded(run_dir: Path, folder: Path) -> Any:
    return saved(export(run_dir, folder / "network"), folder / "model")


def saved(network: Path, folder: Path) -> Any:
    search_path = [*sys.path]
    save_model(network, folder, run_id="0" * 32, artifact_path="model")
    assert sys.path == search_path
    return load_model(folder)


def load_model(folder: Path) -> Any:
    from mlflow import pyfunc  # importing it warns, which `save_model` knows

    return pyfunc.load_model(str(folder))


def test_images_are_predicted_in_either_layout_and_of_any_size(trained: Seen, tmp_path: Path) -> None:
    model, images = loaded(trained.run_dir, tmp_path), trained.test.images.numpy()
    network = esper.load(trained.run_dir)
    expected = [one.label for one in network.predict(trained.test.images)]
    found = model.predict(images)
    assert list(found["label"]) == expected
    assert np.allclose(np.stack(found["probabilities"]), trained.outputs.softmax(1), atol=1e-5)
    assert list(model.predict(images.transpose(0, 2, 3, 1))["label"]) == expected
    large = np.kron(images.transpose(0, 2, 3, 1), np.ones((1, 3, 3, 1), dtype=np.uint8))
    assert list(model.predict(large)["label"]) == [one.label for one in network.predict(list(large))]
    with pytest.raises(MlflowException, match="float32"):
        model.predict(images.astype(np.float32))
    assert model.predict(model.input_example).shape == (1, 3)
    written = {path.name for path in (tmp_path / "model").rglob("*")}
    assert not any(name.endswith(".pkl") for name in written)
    requirements = (tmp_path / "model" / "requirements.txt").read_text().split()
    assert f"esper-train=={esper.__version__}" in requirements
    assert f"torch=={torch.__version__.partition('+')[0]}" in requirements


def test_rows_come_as_arrays_lists_or_a_table_and_text_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "_registered", {})
    rows = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", inputs=rows, targets=rows[:, :2])
    plugins.offer("model", "mlp", lambda spec: torch.nn.Sequential(torch.nn.Linear(4, spec.num_outputs)))
    data = DatasetConfig(
        name="arrays", data_dir=str(tmp_path / "rows.npz"), target_type="number", batch_size=8, val_split=0.3
    )
    config = tiny_config(
        dataset=data,
        model=ModelConfig(source="plugin", name="mlp"),
        task=TaskConfig(name="regression"),
        morphogenetic__enable_tamiyo=False,
    )
    run_dir = train(config, tmp_path / "rows" / "run").run_dir
    model = loaded(run_dir, tmp_path / "rows")
    expected = [one.values for one in esper.load(run_dir).predict(rows[:3])]
    for given in (rows[:3], rows[:3].astype(float), rows[:3].tolist(), pd.DataFrame(rows[:3], columns=list("abcd"))):
        assert np.allclose(model.predict(given), expected)

    network = tmp_path / "rows" / "network"
    description = json.loads((network / "model.json").read_text())
    description["interface"]["input_names"] = list("abcd")  # as of a network that was trained on a table
    (network / "model.json").write_text(json.dumps(description))
    model, table = saved(network, tmp_path / "rows" / "named"), pd.DataFrame(rows[:3], columns=list("abcd"))
    for given in (rows[:3], rows[:3].tolist(), table, table[list("cadb")]):
        assert np.allclose(model.predict(given), expected)
    with pytest.raises(DataError, match="the table lacks the column b, which the network reads"):
        model.predict(table.rename(columns={"b": "e"}))

    run_dir = tmp_path / "text" / "run"
    use(text_config(write_texts(tmp_path / "texts"), optimization__max_epochs=1), run_dir, lambda t: t.train())
    model = loaded(run_dir, tmp_path / "text")
    (greedy,) = model.predict(["the cat"], params={"num_tokens": 5, "temperature": 0.0})
    assert len(greedy.encode()) <= 15
    assert model.predict(pd.DataFrame({"text": ["the cat"]}), params={"num_tokens": 5, "temperature": 0.0}) == [greedy]


MODULE = """
import esper, torch

@esper.model("shipped_net")
def net(spec):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, spec.num_outputs))
"""


@pytest.mark.long
def test_the_module_of_a_network_of_ones_own_goes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_registered", {}), ("_loaded", {})):
        monkeypatch.setattr(plugins, name, value)
    (tmp_path / "shipped_module_of_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    config = tiny_config(
        plugins=["shipped_module_of_test"],
        model=ModelConfig(source="plugin", name="shipped_net"),
        optimization__max_epochs=1,
        morphogenetic__enable_tamiyo=False,
    )
    seen = train(config, tmp_path / "own" / "run")
    images = seen.test.images.numpy()
    expected = loaded(seen.run_dir, tmp_path / "own").predict(images)
    plugins._registered.clear()
    plugins._loaded.clear()
    del sys.modules["shipped_module_of_test"]
    (tmp_path / "shipped_module_of_test.py").unlink()
    sys.path.remove(str(tmp_path))
    assert load_model(tmp_path / "own" / "model").predict(images).equals(expected)
    assert Path(sys.modules["shipped_module_of_test"].__file__ or "").is_relative_to(tmp_path / "own" / "model")
