"""Datasets, how they are split, and how images are augmented."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    module: str
    image_size: int | None = None
    has_fixed_size: bool = False
    has_files: bool = False
    is_streamed: bool = False


DATASETS = {
    "cifar10": DatasetInfo(module="esper.data.sources.cifar", image_size=32, has_fixed_size=True),
    "cifar100": DatasetInfo(module="esper.data.sources.cifar", image_size=32, has_fixed_size=True),
    "imagefolder": DatasetInfo(module="esper.data.sources.imagefolder", has_files=True),
    "imagenet": DatasetInfo(module="esper.data.sources.imagenet", has_files=True, is_streamed=True),
    "digits": DatasetInfo(module="esper.data.sources.digits", image_size=8, has_fixed_size=True),
    "synthetic": DatasetInfo(module="esper.data.sources.synthetic", image_size=16),
}


@dataclass(kw_only=True)
class DatasetConfig:
    """Group `dataset`."""

    name: str = setting("cifar10", "dataset", choices=tuple(DATASETS))
    data_dir: str = setting("./data", "folder of the dataset's files (unused by digits and synthetic)")
    batch_size: int = setting(128, "images per optimizer step", low=1)
    storage: str = setting(
        "auto",
        "image folders: memory decodes images once and keeps them on the device; stream decodes them in every epoch, "
        "and needs image_size; auto streams imagenet, and training images that would take more than 8 GiB of memory",
        choices=("auto", "memory", "stream"),
    )
    num_workers: int = setting(
        4, "stream: worker processes that decode image files (0: the main process decodes); memory: threads", low=0
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
        "use at most this many training images, stratified by class; synthetic: images to generate (null: 2048)",
        low=20,
    )

    use_augmentation: bool = setting(True, "augment training images by random crops and flips")
    crop_padding: int = setting(
        4, "pixels of padding before the random crop (stream: unused, since crops have random size and shape)", low=0
    )
    horizontal_flip: bool = setting(True, "flip half of the training images horizontally")
    normalize: bool = setting(True, "standardise channels by mean and standard deviation of the training split")

    val_split: float = setting(
        0.1,
        "share of the training images that is held out: half for validation and the controller, half for the judge",
        above=0,
        below=1,
    )
    shuffle: bool = setting(True, "shuffle the training images in every epoch")
