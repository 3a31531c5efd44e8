"""Whether the images of a folder are kept in memory."""

from __future__ import annotations

from esper.configs import DatasetConfig
from esper.configs.dataset import DATASETS

__all__ = ["is_streamed"]

MAX_MEMORY_BYTES = 8 * 2**30
"""With storage=auto, training images that need more than this in memory are streamed."""


def is_streamed(config: DatasetConfig, *, num_images: int) -> bool:
    """Whether images are decoded each time they are needed, instead of being kept on the device."""
    if config.storage != "auto" or config.image_size is None:
        return config.storage == "stream"
    return DATASETS[config.name].is_streamed or 3 * config.image_size**2 * num_images > MAX_MEMORY_BYTES
