"""Torch's counter of FLOPs, without what it does for torch.compile."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.flop_counter import FlopCounterMode, _FlopCounterMode

__all__ = ["FlopCounter"]


class FlopCounter(_FlopCounterMode):  # type: ignore[no-untyped-call]
    """Context manager: count the FLOPs of convolutions and matrix products, as `FlopCounterMode` does.

    That one hides itself from torch.compile, for which torch imports torch._dynamo, sympy and more: a second before the
    first step.

    Args:
        formulas: FLOPs of further operations, from the shapes of their arguments.
    """

    __torch_dispatch__ = inspect.unwrap(_FlopCounterMode.__torch_dispatch__)

    def __init__(self, formulas: Mapping[Any, Callable[..., int]]) -> None:
        super().__init__(FlopCounterMode(display=False, custom_mapping=dict(formulas)))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def total(self) -> int:
        """FLOPs so far."""
        return int(self.counter.get_total_flops())
