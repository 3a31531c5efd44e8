"""The images, how they are split, and how they are augmented."""

from __future__ import annotations

from dataclasses import dataclass

from esper.configs.schema import setting

__all__ = ["DATASET_NAMES", "STORAGES", "DatasetConfig"]

DATASET_NAMES = ("cifar10", "cifar100", "imagefolder", "imagenet", "digits", "synthetic")
STORAGES = ("auto", "memory", "stream")


@dataclass(kw_only=True)
class DatasetConfig:
    """Group `dataset`."""

    name: str = setting("cifar10", "where the images come from", choices=DATASET_NAMES)
    data_dir: str = setting("./data", "folder of the dataset's files (not digits, synthetic)")
    batch_size: int = setting(128, "images per optimizer step", low=1)
    storage: str = setting(
        "auto",
        "image folders: memory decodes once and keeps all images on the device; stream decodes them anew whenever they "
        "are needed, and needs image_size; auto streams imagenet, and what would take more than 8 GiB of memory",
        choices=STORAGES,
    )
    num_workers: int = setting(
        4, "stream: processes that decode image files (0: the training itself does it); else threads that do", low=0
    )
    image_size: int | None = setting(
        None,
        "image folders: side to which images are resized and cropped (null: all have one size); "
        "synthetic: side of the images (null: 16)",
        low=4,
    )
    canvas_size: int | None = setting(
        None,
        "stream: side to which training images are decoded before the random crop, and shorter side of the others "
        "before the central one (null: 8/7 of image_size, 256 for 224)",
        low=4,
    )
    num_examples: int | None = setting(
        None,
        "use at most this many training images, drawn evenly over the classes; synthetic: how many to make "
        "(null: 2048)",
        low=20,
    )

    use_augmentation: bool = setting(True, "augment training images: random crop and flip")
    crop_padding: int = setting(
        4, "pixels of padding before the random crop (stream: crops of random size and shape instead)", low=0
    )
    horizontal_flip: bool = setting(True, "mirror half of the training images")
    normalize: bool = setting(True, "standardise channels with the training split's mean and deviation")

    val_split: float = setting(
        0.1,
        "share of the training images that is held out: half for the controller (and validation), half for the judge",
        above=0,
        below=1,
    )
    shuffle: bool = setting(True, "draw a new order of the training images every epoch")
