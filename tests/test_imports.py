"""What the command imports before its first step: each module costs time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_STEP = """
import json, os, sys
from esper import train
loading = train._loading

def stop(*_, **__):
    print(json.dumps(sorted(sys.modules)), flush=True)
    os._exit(0)

from contextlib import contextmanager

@contextmanager
def watched():
    with loading():
        yield
    from esper.tolaria.step import TrainStep
    update = TrainStep.forward_backward_update
    TrainStep.forward_backward_update = lambda *args, **kwargs: (update(*args, **kwargs), stop())

train._loading = watched
train.main()
"""
HEAVY = ("torch._dynamo", "torch._inductor", "sympy", "torchvision", "sklearn", "scipy", "pandas", "matplotlib", "onnx")


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_no_large_module_but_torch_is_imported_before_the_first_step(tmp_path: Path, optimizer: str) -> None:
    command = [sys.executable, "-c", _STEP, "dataset=synthetic", "dataset.image_size=8", "dataset.num_examples=200"]
    settings = ["dataset.batch_size=32", "model=resnet18", f"optimization.optimizer={optimizer}"]
    settings += ["device=cpu", "tracking=none"]
    done = subprocess.run([*command, *settings], cwd=tmp_path, capture_output=True, text=True, check=False)
    imported = json.loads(done.stdout.splitlines()[-1])
    assert "torch" in imported
    assert [name for name in HEAVY if name in imported] == []
