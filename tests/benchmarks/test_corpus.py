"""The text of the benchmark of growing: sources of wheels, the same bytes whenever it is built."""

from __future__ import annotations

import hashlib
import lzma
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks import corpus


def write_wheel(path: Path, files: Mapping[str, str], *, year: int = 2020) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in files.items():
            wheel.writestr(zipfile.ZipInfo(name, (year, 1, 1, 0, 0, 0)), content)
    return path


FILES = {
    "pkg/__init__.py": "version = 1\n",
    "pkg/deep/code.py": "def f():\n    return 'é'\n",
    "pkg/contests.py": "entries = []\n",
    "pkg/tests/test_f.py": "assert f()\n",
    "pkg/test/data.py": "x = 1\n",
    "tests/test_g.py": "assert g()\n",
    "pkg/empty.py": "",
    "pkg/table.py": "#" * 200_001,
    "pkg/whole.py": "#" * 200_000,
    "pkg/code.pyi": "def f() -> str: ...\n",
    "pkg-1.0.dist-info/METADATA": "Name: pkg\n",
}


def test_sources_are_the_python_files_without_tests_empty_files_and_tables(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "pkg-1.0-py3-none-any.whl", FILES)
    found = dict(corpus.sources(wheel))
    assert list(found) == ["pkg/__init__.py", "pkg/contests.py", "pkg/deep/code.py", "pkg/whole.py"]
    assert found["pkg/deep/code.py"] == FILES["pkg/deep/code.py"].encode()


def test_the_archive_depends_on_nothing_but_the_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digests, archives = [], [tmp_path / name / "corpus.tar.xz" for name in ("one", "other")]
    for archive, year, files in zip(archives, (2020, 2025), (FILES, dict(reversed(FILES.items()))), strict=True):
        archive.parent.mkdir()
        wheel = write_wheel(archive.parent / "pkg-1.0-py3-none-any.whl", files, year=year)
        held_out = write_wheel(archive.parent / "two_words-2.0-py3-none-any.whl", {"two_words.py": "x = 2\n"})
        digests.append(corpus.write_archive(archive, {"train": [wheel], "val": [held_out], "test": []}))
    assert archives[0].read_bytes() == archives[1].read_bytes()
    assert digests == [hashlib.sha256(lzma.decompress(archives[0].read_bytes())).hexdigest()] * 2
    with tarfile.open(archives[0]) as archive:
        names = archive.getnames()
    assert names[0] == "python-packages/train/pkg/pkg/__init__.py"
    assert names[-1] == "python-packages/val/two_words/two_words.py"
    assert "val: 6 bytes of 1 packages" in capsys.readouterr().out


def test_wheels_that_are_there_are_not_downloaded(tmp_path: Path) -> None:
    num_wheels = 0
    for packages in corpus.PACKAGES.values():
        for package in packages:
            name, _, version = package.partition("==")
            num_wheels += 1
            files = {f"{name}.py": f"version = {version!r}\n"}
            write_wheel(tmp_path / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", files)
    corpus.main([str(tmp_path / "corpus.tar.xz"), f"--downloads={tmp_path}"])
    with tarfile.open(tmp_path / "corpus.tar.xz") as archive:
        assert len(archive.getnames()) == num_wheels == 17
