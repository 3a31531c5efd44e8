"""What `esper.load` gives predicts exactly what the trainer's evaluation measured, from runs and from exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import esper
from esper import plugins
from esper.configs import DatasetConfig, ModelConfig, TaskConfig
from esper.errors import CheckpointError, ConfigError, DataError, RunError
from esper.inference import Network
from esper.inference.export import export
from tests.conftest import tiny_config, use
from tests.data.photos import write_photos
from tests.data.test_tokenizer import byte_level
from tests.inference.conftest import Seen, train
from tests.text import text_config, write_texts

FORBIDDEN = ("mlflow", "sklearn", "matplotlib", "rich", "esper.build", "esper.tamiyo", "esper.tolaria.loop",
             "esper.tolaria.run", "esper.tolaria.step", "esper.tolaria.trainer")  # fmt: skip


def predicted(network: Network, examples: Any) -> Tensor:
    return torch.stack([prediction.output for prediction in network.predict(examples)])


def test_a_network_is_loaded_onto_a_device_that_is_there(trained: Seen) -> None:
    assert esper.load(trained.run_dir, device="auto").device.type in ("cpu", "cuda")
    with pytest.raises(ConfigError, match="device=cuda:77: this machine has no "):
        esper.load(trained.run_dir, device="cuda:77")


def test_predictions_are_those_of_the_trainers_evaluation_image_by_image(trained: Seen, tmp_path: Path) -> None:
    run_dir, seen = trained.run_dir, trained
    out = export(run_dir, tmp_path / "out")
    assert json.loads((out / "model.json").read_text())["not_folded"] != []
    for folder in (run_dir, out):
        network = esper.load(folder)
        outputs = predicted(network, seen.test.images)
        assert torch.equal(outputs.argmax(1), seen.outputs.argmax(1))
        assert torch.allclose(outputs, seen.outputs, atol=1e-5)
        accuracy = (outputs.argmax(1) == seen.targets).double().mean().item()
        assert accuracy == pytest.approx(seen.result["test_accuracy"], abs=1e-12)
    assert network.class_names == [f"stripes{label}" for label in range(10)]


def test_an_array_an_image_and_a_file_of_one_picture_are_predicted_alike(trained: Seen, tmp_path: Path) -> None:
    run_dir, seen = trained.run_dir, trained
    network = esper.load(run_dir)
    values = seen.test.images[0]
    pixels = values.permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels)
    image.save(tmp_path / "picture.png")
    (expected, *_) = network.predict(seen.test.images[:2])
    assert expected.label == network.class_names[int(seen.outputs[0].argmax())]
    assert expected.probability == pytest.approx(seen.outputs[0].softmax(0).max().item(), abs=1e-5)
    assert expected.top[0] == (expected.label, expected.probability)
    assert len(expected.top) == 5
    for given in (values, pixels, image, tmp_path / "picture.png", str(tmp_path / "picture.png")):
        found = network.predict(given)
        assert torch.allclose(found.output, expected.output, atol=1e-6)
    assert len(network.predict([values, image, tmp_path / "picture.png"])) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((3, 8, 8), dtype=np.float32), "trained on whole numbers from 0 to 255; give these as uint8"),
        (np.zeros((3, 9, 8), dtype=np.uint8), r"array \(3, 9, 8\) of torch.uint8: give an image, its path"),
        ("nowhere.png", "nowhere.png: no such file"),
        (__file__, "not a readable image"),
        (object(), "object: cannot be read as an example"),
    ],
)
def test_what_is_no_example_is_refused_in_one_line(trained: Seen, given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        esper.load(trained.run_dir).predict(given)


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_pictures_of_any_size_are_prepared_as_validation_prepared_them(
    tmp_path: Path, run_dir: Path, storage: str
) -> None:
    folder = write_photos(tmp_path / "photos")
    config = tiny_config(
        dataset=DatasetConfig(
            name="imagefolder", data_dir=str(folder), image_size=16, storage=storage, batch_size=8, num_workers=0,
            val_split=0.5,
        ),
        morphogenetic__enable_tamiyo=False,
        optimization__max_epochs=1,
    )  # fmt: skip
    seen = train(config, run_dir)
    network = esper.load(run_dir)
    paths = [path for name in network.class_names for path in sorted((folder / "val" / name).iterdir())]
    outputs = predicted(network, paths)
    assert torch.allclose(outputs, seen.outputs, atol=1e-5)


def test_a_row_gives_numbers_labels_and_a_text_the_next_token(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", inputs=rows, targets=(rows[:, :2] > 0).astype(np.float32))
    plugins.offer("model", "mlp", lambda spec: torch.nn.Sequential(torch.nn.Linear(4, spec.num_outputs)))
    for task in ("regression", "multilabel"):
        config = tiny_config(
            dataset=DatasetConfig(name="arrays", data_dir=str(tmp_path / "rows.npz"), target_type="number",
                                  batch_size=8, val_split=0.3),
            model=ModelConfig(source="plugin", name="mlp"),
            task=TaskConfig(name=task),
            morphogenetic__enable_tamiyo=False,
        )  # fmt: skip
        seen = train(config, tmp_path / task / "run")
        network = esper.load(tmp_path / task / "run")
        found = network.predict(seen.test.images)
        assert torch.allclose(torch.stack([one.output for one in found]), seen.outputs, atol=1e-6)
        one = network.predict(rows[0].tolist())
        if task == "regression":
            assert one.values == pytest.approx(one.output.tolist())
        else:
            assert [name for name, _ in one.top] == [str(i) for i in range(2) if one.output[i] > 0]

    run_dir = tmp_path / "text" / "run"
    use(text_config(write_texts(tmp_path / "texts"), optimization__max_epochs=1), run_dir, lambda t: t.train())
    out = export(run_dir, tmp_path / "out")
    predictions = [esper.load(folder).predict("the cat sat on the") for folder in (run_dir, out)]
    assert predictions[0].top[0][0] == predictions[1].label
    assert torch.allclose(predictions[0].output, predictions[1].output, atol=1e-5)
    with pytest.raises(DataError, match="the text is empty"):
        esper.load(out).predict("")


def test_another_tokenizer_than_the_networks_is_refused(tmp_path: Path) -> None:
    run_dir, out = tmp_path / "text" / "run", tmp_path / "out"
    tokenizer = byte_level(tmp_path)
    config = text_config(write_texts(tmp_path / "texts"), dataset__tokenizer=tokenizer, optimization__max_epochs=1)
    use(config, run_dir, lambda trainer: trainer.train())
    export(run_dir, out)
    assert esper.load(out).predict("the cat sat").label is not None
    (out / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"its tokenizer \(bytes\) has 256 tokens, the network 3\d\d; put back"):
        esper.load(out)


@pytest.mark.long
def test_loading_imports_neither_the_trainer_nor_what_only_training_needs(trained: Seen, tmp_path: Path) -> None:
    out = export(trained.run_dir, tmp_path / "out")
    code = (
        "import sys, esper; "
        "assert 'torch' not in sys.modules; "
        f"[esper.load(folder) for folder in {[str(trained.run_dir), str(out)]!r}]; "
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "esper.kasmina" in imported
    assert [name for name in FORBIDDEN if name in imported] == []


def test_loading_leaves_torchs_random_numbers_alone(trained: Seen) -> None:
    before = torch.get_rng_state()
    esper.load(trained.run_dir)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_without_the_record_takes_it_from_its_data(trained: Seen, tmp_path: Path) -> None:
    run_dir, seen = trained.run_dir, trained
    older = tmp_path / "tiny" / "older"
    shutil.copytree(run_dir, older)
    (older / "interface.json").write_text("{")
    with pytest.raises(RunError, match=r"interface.json is damaged: .*; remove it, and what it says is taken from the"):
        esper.load(older)
    (older / "interface.json").unlink()
    assert torch.allclose(predicted(esper.load(older), seen.test.images), seen.outputs, atol=1e-5)


def test_a_setting_that_this_version_does_not_know_is_named(trained: Seen, tmp_path: Path) -> None:
    newer = tmp_path / "tiny" / "newer"
    shutil.copytree(trained.run_dir, newer)
    for file in (newer / "config.yaml", newer / "journal.jsonl"):
        file.write_text(re.sub('mlp_ratio(?="?:)', "mlp_satio", file.read_text()))
    with pytest.raises(
        RunError, match=r"config.yaml .*\(model.mlp_satio is no setting of this version of Esper\); rest"
    ):
        esper.load(newer)


def test_a_flipped_bit_and_a_damaged_description_are_refused(trained: Seen, tmp_path: Path) -> None:
    out = export(trained.run_dir, tmp_path / "out")
    weights = out / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"its SHA-256 differs from model.json; export the run again"):
        esper.load(out)
    description = (out / "model.json").read_text()
    (out / "model.json").write_text(description.replace('"model": {', '"model": {"of_a_newer_version": 1, '))
    with pytest.raises(RunError, match=r"model.json is damaged: model.of_a_newer_version"):
        esper.load(out)
    (out / "model.json").write_text(description[:-30])
    with pytest.raises(RunError, match=r"model.json is damaged.*; export the run again"):
        esper.load(out)
