from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from esper.data import ImageSet
from esper.kasmina.modes import evaluating
from esper.tolaria import TolariaTrainer
from esper.tolaria.samples import samples
from esper.tracking.samples import read_samples
from tests.conftest import tiny_config, use


@pytest.mark.parametrize("dataset", ["synthetic", "digits"])  # colours, grey
def test_a_finished_run_leaves_pictures_of_mistakes_and_of_others(tmp_path: Path, dataset: str) -> None:
    config = tiny_config(dataset__name=dataset, dataset__image_size=8 if dataset == "synthetic" else None)

    async def train(trainer: TolariaTrainer) -> None:
        await trainer.train()
        run = trainer.run
        before, random = [p.clone() for p in run.model.state_dict().values()], torch.get_rng_state()
        found = samples(run)
        assert torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(a, b) for a, b in zip(before, run.model.state_dict().values(), strict=True))
        split = run.parts.splits.controller
        assert isinstance(split, ImageSet)
        with evaluating(run.model), torch.no_grad():
            said = run.model(run.parts.prepare(split.images)).argmax(1)
        num_wrong = int((said != split.labels).sum())
        wrong, right = min(8, num_wrong), min(8, len(split) - num_wrong)
        assert [one.true_class == one.predicted_class for one in found] == [False] * wrong + [True] * right
        known = {image.permute(1, 2, 0).numpy().tobytes() for image in split.images.byte()}
        for sample in found:  # their pixels are those of the data set
            picture = Image.open(io.BytesIO(base64.b64decode(sample.png)))
            assert picture.tobytes() in known

    use(config, tmp_path / "run", train)
    assert len(read_samples(tmp_path / "run")) > 0


def test_images_stay_out_of_the_report_if_they_are_to(tmp_path: Path) -> None:
    use(tiny_config(logging__report_images=False), tmp_path, TolariaTrainer.train)
    assert not (tmp_path / "samples.json").exists()
