"""Workers that decode images: what they import, and how images come back."""

from __future__ import annotations

import pickle
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler

import numpy as np

from esper.images import workers  # noqa: F401  (it says how chunks are sent)
from esper.images.decode import Chunk


def test_a_chunk_is_sent_as_a_file_descriptor_not_as_bytes() -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 64, 64, 3), dtype=np.uint8)
    sent = bytes(ForkingPickler.dumps(Chunk(images, np.full((32, 2), 400), {"a.jpg": "cut"})))
    assert len(sent) < images.nbytes / 50
    received: Chunk = pickle.loads(sent)
    assert np.array_equal(received.images, images)
    assert received.sizes.tolist() == [[400, 400]] * 32
    assert received.damaged == {"a.jpg": "cut"}
    received.images[:] = 0  # torch takes only arrays that can be changed


def test_workers_import_no_torch() -> None:
    program = "import sys, esper.images.workers; print(sorted({'torch', 'sklearn', 'mlflow'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
