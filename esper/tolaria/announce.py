"""What a run tells its user when it begins."""

from __future__ import annotations

from collections.abc import Sequence

from esper.contracts.events import Notice
from esper.tolaria.cuda_graph import capture_obstacle
from esper.tolaria.run import Run

__all__ = ["announce"]


def announce(run: Run, notices: Sequence[tuple[str, str]], *, is_resumed: bool) -> None:
    """Journal it.

    Args:
        run: the run, opened and perhaps resumed.
        notices: more to tell: level and message.
        is_resumed: whether it goes on from a checkpoint.
    """

    def inform(message: str) -> None:
        run.emit(Notice, level="INFO", message=message)

    for message in run.parts.splits.notices:
        run.warn(message)
    for message in run.data_notices:
        inform(message)
    for level, message in notices:
        run.emit(Notice, level=level, message=message)
    if run.config.morphogenetic.policy == "replay" and run.model.recipe and not is_resumed:
        inform(f"modules built from the recipe: {len(run.model.recipe)}")
    if run.parts.device.type == "cuda" and (obstacle := capture_obstacle(run.config)):
        inform(f"the step is not captured as a CUDA graph: {obstacle}")
    if run.ranks.size > 1:
        inform(f"{run.ranks.size} ranks share each batch of {run.config.dataset.batch_size} images")
    if late := run.growth.times_too_late:
        run.warn(f"schedule_at={late}: the next consultation is after growth_until, so nothing will grow")
    if soon := run.growth.times_too_soon:
        run.warn(f"schedule_at={soon}: the copies of the share before it are held until then, so nothing will grow")
