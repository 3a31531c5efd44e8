"""CIFAR is loaded by torchvision from a small archive of the same layout."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import socket
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from esper.configs import DatasetConfig
from esper.data import load_splits
from esper.errors import DataError


def write_batch(folder: Path, name: str, n: int, label_key: str, num_classes: int) -> tuple[str, str]:
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(len(name))
    labels = [i % num_classes for i in range(n)]
    data = generator.integers(0, 256, (n, 3072), dtype=np.uint8)
    data[:, 0] = labels  # the first red pixel encodes the label
    content = pickle.dumps({"data": data, label_key: labels})
    (folder / name).write_bytes(content)
    return name, hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    train = [write_batch(folder, f"data_batch_{i}", 40, "labels", 10) for i in (1, 2)]
    test = [write_batch(folder, "test_batch", 30, "labels", 10)]
    meta = pickle.dumps({"label_names": [f"class{i}" for i in range(10)]})
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", test)
    checksum = hashlib.md5(meta, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": checksum})
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/none")
    return tmp_path


def test_cifar10_is_read_with_its_own_test_set(cifar10: Path) -> None:
    config = DatasetConfig(name="cifar10", data_dir=str(cifar10), batch_size=8, val_split=0.25)
    splits = load_splits(config, rng_seed=0)
    assert [len(s) for s in (splits.train, splits.controller, splits.judge, splits.test)] == [60, 10, 10, 30]
    assert splits.train.images.shape[1:] == (3, 32, 32)
    assert torch.equal(splits.train.images[:, 0, 0, 0].long(), splits.train.labels)
    assert splits.spec.output_names[3] == "class3"


def test_an_archive_in_the_folder_is_unpacked_without_network(cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, unpacked = cifar10 / CIFAR10.filename, cifar10 / CIFAR10.base_folder
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(unpacked, arcname=unpacked.name)
    shutil.rmtree(unpacked)
    checksum = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(CIFAR10, "tgz_md5", checksum)
    config = DatasetConfig(name="cifar10", data_dir=str(cifar10), batch_size=8, val_split=0.25)
    assert len(load_splits(config, rng_seed=0).train) == 60


def test_a_damaged_file_is_not_read(cifar10: Path) -> None:
    batch = cifar10 / "cifar-10-batches-py" / "data_batch_1"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(DataError, match="damaged"):
        load_splits(DatasetConfig(name="cifar10", data_dir=str(cifar10), batch_size=8), rng_seed=0)


def test_cifar100_has_its_own_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-100-python"
    monkeypatch.setattr(CIFAR100, "train_list", [write_batch(folder, "train", 400, "fine_labels", 100)])
    monkeypatch.setattr(CIFAR100, "test_list", [write_batch(folder, "test", 100, "fine_labels", 100)])
    meta = pickle.dumps({"fine_label_names": [f"class{i}" for i in range(100)]})
    (folder / "meta").write_bytes(meta)
    checksum = hashlib.md5(meta, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": checksum})
    config = DatasetConfig(name="cifar100", data_dir=str(tmp_path), batch_size=8, val_split=0.5)
    splits = load_splits(config, rng_seed=0)
    assert len(splits.spec.output_names) == 100
    assert torch.bincount(splits.train.labels).tolist() == [2] * 100


def test_an_error_says_where_to_put_the_missing_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")  # connection refused
    with pytest.raises(
        DataError, match=r"put cifar-10-python.tar.gz there, or unpack it there to cifar-10-batches-py/"
    ):
        load_splits(DatasetConfig(name="cifar10", data_dir=str(tmp_path)), rng_seed=0)


@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "cifar-10-batches-py/data_batch_1"])
def test_a_pipe_is_refused_and_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}: not a regular file; remove it"):
        load_splits(DatasetConfig(name="cifar10", data_dir=str(tmp_path), batch_size=8), rng_seed=0)


def test_a_download_that_fails_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(DataError):
        load_splits(DatasetConfig(name="cifar10", data_dir=str(tmp_path / "new" / "data")), rng_seed=0)
    assert not list(tmp_path.iterdir())


def test_a_download_that_gets_no_data_ends_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections, never answers
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.getsockname()[1]}/cifar.tar.gz")
        config = DatasetConfig(name="cifar10", data_dir=str(tmp_path / "data"), timeout_s=0.2)
        with pytest.raises(DataError, match=r"cannot be downloaded, or damaged \(timed out\)"):
            load_splits(config, rng_seed=0)
    assert not list(tmp_path.iterdir())
    assert socket.getdefaulttimeout() is None
