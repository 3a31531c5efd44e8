"""Python sources of well-known packages as text for `dataset=text`: whole packages are held out.

    python benchmarks/corpus.py ARCHIVE.tar.xz [--downloads FOLDER]

pip downloads the pinned wheels below, some 110 MB. The archive has python-packages/SPLIT/PACKAGE/... with a SPLIT for
`split_by=given`: train, val and test. Left out are tests, and files above 200 kB, most of which are generated tables.
The same wheels give the same archive; printed are the bytes of each split and the SHA-256 of the tar in the archive.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import lzma
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

__all__ = ["PACKAGES", "main", "sources", "write_archive"]

PACKAGES = {
    "train": (
        "ansible-core==2.21.5", "astropy==8.0.2", "biopython==1.88", "django==6.1.3", "matplotlib==3.11.2",
        "pandas==3.1.1", "scikit-learn==1.9.1", "scipy==1.18.1", "sqlalchemy==2.1.9", "sympy==1.14.0",
        "twisted==26.10.0",
    ),
    "val": ("celery==5.7.0", "distributed==2026.8.0", "tornado==6.6.1"),
    "test": ("gpytorch==1.15.2", "optuna==5.0.0", "scrapy==2.19.0"),
}  # fmt: skip
_ROOT = "python-packages"
_TESTS = re.compile(r"(^|/)tests?/")
_MAX_BYTES = 200_000
# The wheels for one platform, whatever this machine is.
_PLATFORM = (
    "--only-binary=:all:", "--python-version=3.13", "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux_2_27_x86_64", "--platform=manylinux_2_24_x86_64", "--platform=manylinux2014_x86_64",
    "--platform=any",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Download and write the archive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, metavar="ARCHIVE.tar.xz")
    parser.add_argument("--downloads", type=Path, help="folder that keeps the wheels; default: a temporary one")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.downloads or Path(temporary)
        wheels = {split: [_download(package, folder) for package in packages] for split, packages in PACKAGES.items()}
        digest = write_archive(options.archive, wheels)
    print(f"{options.archive}: {options.archive.stat().st_size / 1e6:.1f} MB, SHA-256 of the tar {digest}")


def _download(package: str, folder: Path) -> Path:
    """The wheel of a package, from the folder if it is there."""
    name, _, version = package.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *_PLATFORM, "--dest", str(folder)]
        subprocess.run([*command, package], check=True)
    (wheel,) = folder.glob(pattern)
    return wheel


def sources(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a wheel's Python sources, by name."""
    with zipfile.ZipFile(wheel) as archive:
        for member in sorted(archive.infolist(), key=lambda member: member.filename):
            is_source = member.filename.endswith(".py") and not _TESTS.search(member.filename)
            if is_source and 0 < member.file_size <= _MAX_BYTES:
                yield member.filename, archive.read(member)


def write_archive(path: Path, wheels: Mapping[str, Sequence[Path]]) -> str:
    """Write the sources of each split's wheels as .tar.xz; returns the SHA-256 of the tar in it."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for split, members in wheels.items():
            size = 0
            for wheel in members:
                package = wheel.name.partition("-")[0]
                for name, content in sources(wheel):
                    info = tarfile.TarInfo(f"{_ROOT}/{split}/{package}/{name}")  # no time, no owner
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
                    size += len(content)
            print(f"{split}: {size:,} bytes of {len(members)} packages")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(tar.getvalue(), preset=6))
    return hashlib.sha256(tar.getvalue()).hexdigest()


if __name__ == "__main__":
    main()
