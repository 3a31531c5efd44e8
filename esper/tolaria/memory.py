"""What running out of memory looks like, on any device, and what would fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from esper.configs import TolariaConfig
from esper.errors import MemoryLimitError, one_line
from esper.tolaria.ranks import Ranks

__all__ = ["explained", "is_out_of_memory", "within_memory"]

T = TypeVar("T")

_SIGNS = ("can't allocate memory", "out of memory", "bad_alloc", "alloc_failed")
"""Parts of messages of a RuntimeError: of the CPU's allocator, CUDA, the C++ library, cuBLAS and cuDNN."""
_MAX_REASON = 200


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it was raised while handling, says that memory could not be allocated."""
    if isinstance(error, MemoryError | MemoryLimitError | torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS):
        return True
    # The end of a capture may fail because of what failed inside.
    earlier = error.__cause__ or error.__context__
    return earlier is not None and is_out_of_memory(earlier)


def within_memory(part: Callable[[], T], ranks: Ranks) -> T:
    """Do a part of the work on this rank; all ranks do it.

    Raises:
        MemoryLimitError: on all ranks, if one of them ran out of memory.
    """
    result, problem = None, None
    try:
        result = part()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        problem = one_line(error, max_length=_MAX_REASON)
    if (problem := ranks.any_value(problem)) is not None:
        raise MemoryLimitError(problem)
    return result  # type: ignore[return-value]


def explained(error: BaseException, config: TolariaConfig) -> MemoryLimitError:
    """The error for the user: what failed, and the settings that need less memory."""
    remedies = [f"dataset.batch_size={config.dataset.batch_size // 2}"] if config.dataset.batch_size > 1 else []
    if config.dataset.batch_size >= 4 * config.optimization.accumulate:
        remedies.append(f"optimization.accumulate={2 * config.optimization.accumulate}")
    if not config.model.gradient_checkpointing:
        remedies.append("model.gradient_checkpointing=true")
    if config.device != "cpu" and torch.cuda.is_available() and config.mixed_precision is False:
        remedies.append("mixed_precision=true")
    fits = f"; what needs less: {', '.join(remedies)}" if remedies else ""
    return MemoryLimitError(
        f"out of memory ({one_line(error, max_length=_MAX_REASON)}){fits}; checkpoints are kept, and the same command "
        "resumes from the newest one where more memory is free"
    )
