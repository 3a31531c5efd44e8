from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.configs import DatasetConfig
from esper.data import DataSplits, DecodePool, FileSet, Preprocess, StreamLoader, load_splits
from esper.data.stream import stream_batches
from esper.errors import DataError, DecoderError
from esper.images.storage import is_streamed
from tests.data.photos import CLASSES, write_photos

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def processes() -> Iterator[DecodePool]:
    pool = DecodePool(2)
    yield pool
    pool.close()


def settings(photos: Path, **changes: Any) -> DatasetConfig:
    chosen = {"name": "imagenet", "data_dir": str(photos), "image_size": 16, "batch_size": 4, "val_split": 0.2}
    return DatasetConfig(**(chosen | {"num_workers": 2} | changes))


def preparation(splits: DataSplits) -> Preprocess:
    return Preprocess(mean=splits.mean, std=splits.std, normalize=True, channels_last=True, device=CPU)


def using(splits: DataSplits, pool: DecodePool) -> dict[str, Any]:
    return {"prepare": preparation(splits), "pool": pool, "device": CPU}


def started_workers(splits: DataSplits, pool: DecodePool) -> list[BaseProcess]:
    """Both: the second one is started when there is work while the first one is busy, or is starting."""
    others, mine = set(multiprocessing.active_children()), list[BaseProcess]()
    while len(mine) < 2:
        list(stream_batches(splits.test, 4, **using(splits, pool)))
        mine = [child for child in multiprocessing.active_children() if child not in others]
    return mine


def loader(photos: Path, pool: DecodePool, rows: slice = slice(None), **changes: Any) -> StreamLoader:
    config = settings(photos, **changes)
    splits = load_splits(config, rng_seed=0)
    assert isinstance(splits.train, FileSet)
    return StreamLoader(splits.train, config, rng_seed=0, rows=rows, **using(splits, pool))


def test_splits_of_files_are_disjoint_and_stratified(photos: Path) -> None:
    splits = load_splits(settings(photos), rng_seed=0)
    parts = [splits.train, splits.controller, splits.judge, splits.test]
    assert [torch.bincount(part.labels).tolist() for part in parts] == [[16, 16], [2, 2], [2, 2], [4, 4]]
    paths = [path for part in parts for path in part.paths(torch.arange(len(part)))]
    assert len(set(paths)) == 48
    assert splits.spec.output_names == CLASSES
    assert splits.train.shape == (3, 16, 16)
    for path, label in zip(splits.train.paths(torch.arange(32)), splits.train.labels.tolist(), strict=True):
        assert Path(path).parent.name == CLASSES[label]


def test_streamed_and_in_memory_images_have_the_same_splits_mean_and_std(photos: Path) -> None:
    streamed = load_splits(settings(photos, canvas_size=16), rng_seed=0)
    kept = load_splits(settings(photos, storage="memory"), rng_seed=0)
    assert torch.equal(streamed.judge.labels, kept.judge.labels)
    assert streamed.mean == pytest.approx(kept.mean, abs=0.003)
    assert streamed.std == pytest.approx(kept.std, abs=0.003)
    batches = stream_batches(streamed.test, 3, prepare=preparation(kept), pool=DecodePool(0), device=CPU)
    whole = torch.cat([images for images, _ in batches])
    assert (whole - preparation(kept)(kept.test.images)).abs().mean() < 0.06  # four grey levels of 256


@pytest.mark.parametrize("augmented", [True, False])
def test_workers_decode_the_same_batches_as_the_main_process(
    photos: Path, processes: DecodePool, augmented: bool
) -> None:
    ours = loader(photos, DecodePool(0), use_augmentation=augmented)
    theirs = loader(photos, processes, use_augmentation=augmented)
    for number in [(0, 5), (0, 6), (0, 7), (1, 0), (1, 0), (0, 2), (3, 1), (3, 2)]:
        for mine, yours in zip(ours.batch(*number), theirs.batch(*number), strict=True):
            assert torch.equal(mine, yours)


def test_an_epoch_has_every_image_once_and_the_next_epoch_other_crops(photos: Path) -> None:
    batches = loader(photos, DecodePool(0))
    epochs = []
    for epoch in range(2):
        found = [batches.batch(epoch, i) for i in range(batches.num_batches)]
        epochs.append(torch.cat([images for images, _ in found]))
        assert torch.cat([labels for _, labels in found]).bincount().tolist() == [16, 16]
    assert epochs[0].flatten(1).unique(dim=0).shape[0] == 32
    assert not torch.allclose(epochs[0].mean(dim=(1, 2, 3)).sort().values, epochs[1].mean(dim=(1, 2, 3)).sort().values)


def test_the_rows_of_all_ranks_make_up_the_whole_batch(photos: Path) -> None:
    whole, first, rest = (loader(photos, DecodePool(0), rows) for rows in (slice(None), slice(0, 1), slice(1, 4)))
    for number in [(0, 0), (0, 1), (1, 3)]:
        for one, other, both in zip(*(part.batch(*number) for part in (first, rest, whole)), strict=True):
            assert torch.equal(torch.cat([one, other]), both)
    assert torch.equal(next(rest.first_batches(0, 1)), next(whole.first_batches(0, 1)))


def test_horizontal_flip_flips_some_images(photos: Path) -> None:
    plain, mirrored = (loader(photos, DecodePool(0), horizontal_flip=flip).batch(0, 0)[0] for flip in (False, True))
    same = (plain == mirrored).flatten(1).all(dim=1)
    flipped = torch.isclose(plain.flip(3), mirrored, atol=1e-4).flatten(1).all(dim=1)
    assert bool((same | flipped).all())
    assert bool(same.any())
    assert bool((flipped & ~same).any())


def test_rand_augment_changes_most_streamed_images(photos: Path) -> None:
    plain, changed = (
        loader(photos, DecodePool(0), rand_augment_num_ops=num, rand_augment_magnitude=30).batch(0, 0)[0]
        for num in (0, 2)
    )
    assert float((plain != changed).flatten(1).any(1).float().mean()) > 0.5


def test_tensor_epoch_and_index_read_the_batch_of_the_last_seek(photos: Path) -> None:
    batches = loader(photos, DecodePool(0))
    expected = [tensor.clone() for tensor in batches.batch(2, 3)]
    batches.seek(2, 3)
    for one, other in zip(batches.batch(torch.tensor(2), torch.tensor(3)), expected, strict=True):
        assert torch.equal(one, other)


def test_first_batches_leave_the_batch_of_the_last_seek(photos: Path, processes: DecodePool) -> None:
    batches = loader(photos, processes)
    sought = batches.batch(0, 5)[0]
    first = list(batches.first_batches(1, 2))
    assert torch.equal(batches.batch(torch.tensor(0), torch.tensor(5))[0], sought)
    again = [*batches.first_batches(1, 3)]
    for index, images in enumerate(again):
        assert torch.equal(images, batches.batch(1, index)[0])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=False))


def test_first_batches_are_decoded_once_until_the_next_seek(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from esper.data import pool

    batches, decoded = loader(photos, DecodePool(0)), []
    decode = pool.decode_chunk
    monkeypatch.setattr(
        pool, "decode_chunk", lambda paths, resize, check: decoded.extend(paths) or decode(paths, resize)
    )
    for num in (1, 2, 2):
        list(batches.first_batches(0, num))
    assert len(decoded) == 8
    batches.seek(0, 0)
    list(batches.first_batches(0, 1))
    assert len(decoded) == 16


def test_stream_batches_are_in_order_and_complete(photos: Path, processes: DecodePool) -> None:
    splits = load_splits(settings(photos), rng_seed=0)
    found = list(stream_batches(splits.test, 3, **using(splits, processes)))
    assert [len(labels) for _, labels in found] == [3, 3, 2]
    assert torch.equal(torch.cat([labels for _, labels in found]), splits.test.labels)
    assert found[0][0].shape == (3, 3, 16, 16)
    assert found[0][0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, num_workers: int) -> None:
    photos = write_photos(tmp_path, num_train=10)
    splits = load_splits(settings(photos), rng_seed=0)
    (photos / "val" / CLASSES[1] / f"{CLASSES[1]}_002.JPEG").write_bytes(b"no image")
    others, pool = set(multiprocessing.active_children()), DecodePool(num_workers)
    with pytest.raises(DataError, match=rf"^[^\n]*{CLASSES[1]}_002.JPEG: not a readable image[^\n]*$"):
        list(stream_batches(splits.test, 8, **using(splits, pool)))
    pool.close()
    assert set(multiprocessing.active_children()) <= others


@pytest.mark.long
def test_a_dead_worker_is_reported_in_one_line_and_the_others_stop(photos: Path) -> None:
    splits, pool = load_splits(settings(photos), rng_seed=0), DecodePool(2)
    mine = started_workers(splits, pool)
    os.kill(mine[0].pid or 0, signal.SIGKILL)
    passes = itertools.chain.from_iterable(stream_batches(splits.train, 2, **using(splits, pool)) for _ in range(1000))
    with pytest.raises(DecoderError, match=r"^a worker that decodes images has died, .*num_workers") as error:
        list(passes)  # a pass may finish before the death is noticed
    assert error.value.exit_code == 1
    pool.close()
    assert not any(process.is_alive() for process in mine)


@pytest.mark.long
def test_a_worker_that_is_suspended_does_not_keep_the_pool_open(photos: Path) -> None:
    splits, pool = load_splits(settings(photos), rng_seed=0), DecodePool(2)
    mine = started_workers(splits, pool)
    os.kill(mine[0].pid or 0, signal.SIGSTOP)
    closing = threading.Thread(target=pool.close, daemon=True)
    closing.start()
    closing.join(60)
    is_closed = not closing.is_alive()
    mine[0].kill()
    assert is_closed
    assert not any(process.is_alive() for process in mine)


def test_ctrl_c_does_not_reach_the_workers(photos: Path, processes: DecodePool) -> None:
    splits = load_splits(settings(photos), rng_seed=0)
    expected = [labels for _, labels in stream_batches(splits.test, 2, **using(splits, processes))]
    for child in multiprocessing.active_children():
        assert child.pid is not None
        deadline = time.monotonic() + 60
        while os.getpgid(child.pid) == os.getpgid(0):  # it is still starting
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(child.pid, signal.SIGINT)
    again = [labels for _, labels in stream_batches(splits.test, 2, **using(splits, processes))]
    assert torch.equal(torch.cat(again), torch.cat(expected))


@pytest.mark.long
def test_workers_exit_when_their_parent_is_killed(photos: Path, tmp_path: Path) -> None:
    killed = multiprocessing.get_context("spawn").Process(target=start_and_be_killed, args=(photos, tmp_path / "pids"))
    killed.start()
    killed.join()
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/cmdline").exists() and is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def start_and_be_killed(photos: Path, told: Path) -> None:
    splits, pool = load_splits(settings(photos), rng_seed=0), DecodePool(2)
    told.write_text(" ".join(str(worker.pid) for worker in started_workers(splits, pool)))
    os.kill(os.getpid(), signal.SIGKILL)


def test_imagenet_requires_wordnet_ids_as_class_names(tmp_path: Path) -> None:
    photos = write_photos(tmp_path)
    for split in ("train", "val"):
        (photos / split / CLASSES[0]).rename(photos / split / "cat")
    with pytest.raises(DataError, match=r"train/cat is no ImageNet class .* use dataset=imagefolder"):
        load_splits(settings(photos), rng_seed=0)


def test_auto_streams_imagenet_and_large_datasets() -> None:
    folder, imagenet = DatasetConfig(name="imagefolder", image_size=224), DatasetConfig(name="imagenet", image_size=64)
    assert not is_streamed(folder, num_images=57_000)
    assert is_streamed(folder, num_images=57_100)  # of 150 528 bytes
    assert is_streamed(imagenet, num_images=10)
    assert not is_streamed(DatasetConfig(name="imagefolder"), num_images=10**7)
    assert is_streamed(DatasetConfig(name="imagefolder", image_size=8, storage="stream"), num_images=10)
