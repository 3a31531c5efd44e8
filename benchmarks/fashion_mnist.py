"""Half of Fashion-MNIST as a folder of images: 30,000 to train on and 5,000 to test, 28 pixels, grey, lossless.

    python benchmarks/fashion_mnist.py FOLDER ARCHIVE.tar.xz

FOLDER has the four files of github.com/zalandoresearch/fashion-mnist (train-images-idx3-ubyte.gz, …), as Debian's
package dataset-fashion-mnist puts them into /usr/share/datasets/fashion-mnist. The archive has
fashion-mnist/train/CLASS/INDEX.png and fashion-mnist/test/…, the first half of each; printed is the SHA-256 of the tar.
Source: Xiao et al. (2017), arXiv:1708.07747.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import lzma
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["main"]

_SPLITS = {"train": ("train", 30_000), "test": ("t10k", 5_000)}
_IMAGES_HEADER, _LABELS_HEADER, _PIXELS = 16, 8, 28


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the archive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("archive", type=Path, metavar="ARCHIVE.tar.xz")
    options = parser.parse_args(arguments)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for split, (name, number) in _SPLITS.items():
            images, labels = (
                np.frombuffer(gzip.decompress((options.folder / f"{name}-{kind}-ubyte.gz").read_bytes()), np.uint8)
                for kind in ("images-idx3", "labels-idx1")
            )
            pixels = images[_IMAGES_HEADER:].reshape(-1, _PIXELS, _PIXELS)[:number]
            for index, (image, label) in enumerate(zip(pixels, labels[_LABELS_HEADER:], strict=False)):
                content = io.BytesIO()
                Image.fromarray(image).save(content, format="png", compress_level=0)  # xz compresses better
                info = tarfile.TarInfo(f"fashion-mnist/{split}/{label}/{index:05}.png")  # no time, no owner
                info.size = content.tell()
                content.seek(0)
                archive.addfile(info, content)
    options.archive.parent.mkdir(parents=True, exist_ok=True)
    options.archive.write_bytes(lzma.compress(tar.getvalue(), preset=6))
    size, digest = options.archive.stat().st_size, hashlib.sha256(tar.getvalue()).hexdigest()
    print(f"{options.archive}: {size / 1e6:.1f} MB, SHA-256 of the tar {digest}")


if __name__ == "__main__":
    main()
