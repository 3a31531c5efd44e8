"""Other formats: what is written computes the same, for any number of examples."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import esper
from esper.errors import CheckpointError
from esper.inference.formats import FORMATS, write_format
from tests.conftest import use
from tests.inference.conftest import Seen, command
from tests.text import text_config, write_texts

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 3, 8, 8), dtype=np.uint8)


def example() -> str:
    """The program of the cookbook, as it is printed."""
    page = (Path(__file__).parents[2] / "docs" / "cookbook.md").read_text()
    (block,) = re.findall(r"^(    import json\n(?:    .*\n|\n)+)", page, re.MULTILINE)
    return textwrap.dedent(block)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "name", ["torchscript", *(pytest.param(name, marks=pytest.mark.long) for name in ("torch.export", "onnx"))]
)
def test_a_grown_network_is_written_and_computes_the_same_for_any_batch(
    trained: Seen, tmp_path: Path, name: str
) -> None:
    if name == "onnx" and find_spec("onnxscript") is None:
        pytest.skip("needs the extra onnx")
    out = tmp_path / "out"
    assert command("export", trained.run_dir, "--out", out, "--format", name, "--license", "CC-BY-4.0") == 0
    described = json.loads((out / "model.json").read_text())
    assert described["license"] == "CC-BY-4.0"
    assert described["checked"]["inputs"] == "16 validation examples"
    assert set(described["checked"]["greatest_difference"]) == {"safetensors", name}
    network = esper.load(out)
    inputs = network.prepare(torch.from_numpy(IMAGES))
    found = FORMATS[name].read(out / FORMATS[name].file)(inputs)
    assert torch.allclose(found, network(inputs), atol=1e-4)
    if name == "onnx":
        import onnx

        Image.fromarray(IMAGES[0].transpose(1, 2, 0)).save(tmp_path / "cat.jpg", format="png")
        (tmp_path / "out").rename(tmp_path / "net")
        done = subprocess.run(
            [sys.executable, "-c", example()], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == network.predict(IMAGES[0]).label  # type: ignore[union-attr]
        (entry,) = onnx.load(tmp_path / "net" / "model.onnx").metadata_props
        assert json.loads(entry.value)["output_names"] == network.class_names


@pytest.mark.long
def test_a_grown_language_model_is_written_in_other_formats(tmp_path: Path) -> None:
    run_dir = tmp_path / "text" / "run"
    config = text_config(write_texts(tmp_path / "texts"), optimization__max_epochs=2)
    use(config, run_dir, lambda trainer: trainer.train())
    formats = ("--format=torchscript", "--format=torch.export")
    assert command("export", run_dir, "--out", tmp_path / "out", *formats) == 0


class _Fixed(nn.Module):
    """Computes something else for batches of other than two."""

    def forward(self, x: Tensor) -> Tensor:
        return x * int(x.shape[0])


def test_a_file_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model.torchscript: computes something else than the network"):
        write_format("torchscript", _Fixed(), torch.ones(4, 3), {}, tmp_path)


def test_without_the_data_real_inputs_are_asked_for_and_can_be_given(
    trained: Seen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (trained.run_dir / "config.yaml").read_text()
    (trained.run_dir / "config.yaml").write_text(
        config.replace("name: synthetic", "name: imagefolder").replace("data_dir: ./data", "data_dir: /nowhere")
    )
    try:
        out = tmp_path / "out"
        assert command("export", trained.run_dir, "--out", out) == 0
        described = json.loads((out / "model.json").read_text())
        assert described["checked"]["inputs"] == "16 random inputs, as the data was not there"
        again = ("export", trained.run_dir, "--out", tmp_path / "other", "--format", "torchscript")
        capsys.readouterr()
        assert command(*again) == 2
        assert "give a folder of pictures: --check FOLDER" in capsys.readouterr().err
        assert not (tmp_path / "other").exists()
        np.savez(tmp_path / "inputs.npz", inputs=IMAGES)
        assert command(*again, "--check", tmp_path / "inputs.npz") == 0
        described = json.loads((tmp_path / "other" / "model.json").read_text())
        assert described["checked"]["inputs"] == "7 given examples"
    finally:
        (trained.run_dir / "config.yaml").write_text(config)
