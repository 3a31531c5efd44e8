"""Datasets, how they are split, and how images are augmented."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from esper.configs.schema import setting

__all__ = ["DATASETS", "DatasetConfig", "DatasetInfo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """What is known about a dataset before it is loaded.

    Attributes:
        module: where it is loaded: `load(config, cache_dir)` in this module.
        image_size: side of its images in pixels, if dataset.image_size is null; None: unknown.
        has_fixed_size: whether dataset.image_size must be null.
        has_files: whether it is a folder of image files, which can be streamed.
        is_streamed: whether storage=auto always streams it.
        is_text: whether it is text, in windows of token ids.
    """

    module: str
    image_size: int | None = None
    has_fixed_size: bool = False
    has_files: bool = False
    is_streamed: bool = False
    is_text: bool = False


DATASETS = {
    "cifar10": DatasetInfo(module="esper.data.sources.cifar", image_size=32, has_fixed_size=True),
    "cifar100": DatasetInfo(module="esper.data.sources.cifar", image_size=32, has_fixed_size=True),
    "imagefolder": DatasetInfo(module="esper.data.sources.imagefolder", has_files=True),
    "imagenet": DatasetInfo(module="esper.data.sources.imagenet", has_files=True, is_streamed=True),
    "digits": DatasetInfo(module="esper.data.sources.digits", image_size=8, has_fixed_size=True),
    "synthetic": DatasetInfo(module="esper.data.sources.synthetic", image_size=16),
    "arrays": DatasetInfo(module="esper.data.sources.arrays"),
    "plugin": DatasetInfo(module="esper.data.sources.registered"),
    "text": DatasetInfo(module="esper.data.sources.text", is_text=True),
    "python_source": DatasetInfo(module="esper.data.sources.python_source", is_text=True),
}


@dataclass(kw_only=True)
class DatasetConfig:
    """Group `dataset`."""

    name: str = setting("cifar10", "dataset", choices=tuple(DATASETS))
    source: str | None = setting(None, "dataset=plugin: name that a plugin has registered")
    options: dict[str, Any] = setting({}, "dataset=plugin: arguments of your function")
    digest: str | None = setting(None, "digest of the data given to fit, set by it")
    target: str | None = setting(None, "arrays: column to predict; null: the last one")
    target_type: str = setting("class", "arrays: what the target is, class or number", choices=("class", "number"))
    data_dir: str = setting("./data", "folder of the dataset's files; text: a folder or a file")
    batch_size: int = setting(128, "examples per optimizer step: images, or windows of text", low=1)
    storage: str = setting(
        "auto",
        "image folders: memory decodes images once and keeps them on the device; stream decodes them in every epoch, "
        "and needs image_size; auto streams imagenet, and training images that would take more than 8 GiB of memory; "
        "text: memory keeps the token ids on the device, stream in a memory-mapped file, auto above 8 GiB",
        choices=("auto", "memory", "stream"),
    )
    num_workers: int = setting(
        4,
        "stream: processes that decode image files (0: the main process decodes); memory: threads that decode what was "
        "not decoded on all cores while torch was imported (0: nothing is)",
        low=0,
    )
    timeout_s: float = setting(
        60.0,
        "seconds, beyond the longest wait so far, after which a run ends that waits for images to be decoded, or for a "
        "download to go on",
        above=0,
    )
    image_size: int | None = setting(
        None,
        "image folders: side to which images are resized and cropped (null: images have one size and keep it); "
        "synthetic: side of the images (null: 16)",
        low=4,
    )
    canvas_size: int | None = setting(
        None,
        "stream: side to which training images are resized before the random crop, and shorter side of other images "
        "before the centre crop (null: 8/7 of image_size, such as 256 for 224)",
        low=4,
    )
    num_examples: int | None = setting(
        None,
        "use at most this many training images, stratified by class; text: about so many windows; synthetic: images to "
        "generate (null: 2048)",
        low=20,
    )

    use_augmentation: bool = setting(True, "augment training images by random crops and flips")
    crop_padding: int = setting(
        4, "pixels of padding before the random crop (stream: unused, since crops have random size and shape)", low=0
    )
    horizontal_flip: bool = setting(True, "flip half of the training images horizontally")
    mixup_alpha: float = setting(
        0.0,
        "mixup: images and targets are mixed by shares from Beta(alpha, alpha), such as 0.2; 0: off",
        low=0,
        high=100,
    )
    cutmix_alpha: float = setting(
        0.0,
        "CutMix: a rectangle comes from another image, its share of the area from Beta(alpha, alpha), such as 1.0; "
        "with mixup, half of the images get either; 0: off",
        low=0,
        high=100,
    )
    random_erasing: float = setting(
        0.0, "share of the training images of which a random rectangle is set to the mean", low=0, high=1
    )
    rand_augment_num_ops: int = setting(
        0, "RandAugment: operations applied to each training image, such as 2; 0: off", low=0, high=10
    )
    rand_augment_magnitude: int = setting(9, "RandAugment: strength of its operations", low=0, high=30)
    normalize: bool = setting(True, "standardise channels by mean and standard deviation of the training split")

    val_split: float = setting(
        0.1,
        "share of the training data that is held out: half for validation and the controller, half for the judge",
        above=0,
        below=1,
    )
    split_seed: int | None = setting(
        None,
        "seed of the split into training and held-out data; null: rng_seed. With model.init_from the rng_seed of the "
        "earlier network, so that nothing is held out that it was trained on",
        low=0,
        high=2**63 - 1,
    )
    shuffle: bool = setting(True, "shuffle the training data in every epoch")

    context: int = setting(256, "text: tokens in a window, all that the network reads at once", low=1)
    tokenizer: str | None = setting(
        None, "text: tokenizer.json of the library tokenizers (extra text); null: each byte is a token"
    )
    file_pattern: str = setting("*", "text: names of the files in data_dir and its subfolders, such as *.txt")
    document_separator: str = setting(
        "<|endoftext|>", "text: what stands between the documents of a file; '': each file is one document"
    )
    split_by: str = setting(
        "document",
        "text: document splits documents at random; folder keeps those of each subfolder of data_dir together; given "
        "takes the subfolders train, val and test, whatever val_split and test_split are",
        choices=("document", "folder", "given"),
    )
    test_split: float = setting(
        0.1, "text: share of all documents in the test split, which is the same for every seed", above=0, below=1
    )
    epoch_windows: int | None = setting(
        None, "text: windows in an epoch, of which a pass over the training split may take many; null: the whole", low=1
    )
