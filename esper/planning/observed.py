"""Read the finished runs of a family in an experiment's folder: what they observed, and the trunks that they left."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper.configs.identity import checkpoints_folder, family, with_defaults
from esper.costs import Ledger, training_macs
from esper.errors import RunError
from esper.planning.family import Family
from esper.planning.observations import Observation
from esper.tolaria.checkpoints.files import find_checkpoints
from esper.tolaria.data_record import recorded_data
from esper.tolaria.run_folder import RunFolder, recorded_config
from esper.tracking import read

__all__ = ["FinishedRun", "Trunk", "finished_runs", "longest_trunk", "observations", "spent_by"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trunk:
    """The checkpoint of a run before its learning rate decayed.

    Attributes:
        path: its folder.
        size: name of its network.
        seed: `rng_seed` of the run.
        macs: spent until then.
        seconds: spent until then.
    """

    path: Path
    size: str
    seed: int
    macs: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A finished run of a family.

    Attributes:
        run_dir: its folder.
        size: name of the network that it ended with.
        seed: its `rng_seed`.
        host_macs: MACs until it grew; 0: trained from scratch.
        result: see `contracts.events.RunEnded`.
        began_from: path of the checkpoint that it went on from at its start; None: from the first step.
        trunk: the checkpoint before its learning rate decayed; None if it kept none, or had grown.
    """

    run_dir: Path
    size: str
    seed: int
    host_macs: float
    result: Mapping[str, Any]
    began_from: str | None
    trunk: Trunk | None


def finished_runs(known: Family, *, read_before: Sequence[FinishedRun] = ()) -> list[FinishedRun]:
    """The finished runs of a family in its folder, by name; other runs, and what cannot be read, are left out.

    Args:
        known: the family.
        read_before: finished runs, which are not read again.
    """
    before = {run.run_dir: run for run in read_before}
    folders = sorted(known.folder.iterdir()) if known.folder.is_dir() else []
    found = (before.get(path) or _finished(path, known) for path in folders if (path / "config.yaml").is_file())
    return [run for run in found if run is not None]


def observations(runs: Sequence[FinishedRun], known: Family, *, pilots: Collection[str]) -> list[Observation]:
    """What runs observed; `pilots`: names of those that were trained for this plan."""
    return [
        Observation(
            size=run.size,
            seed=run.seed,
            macs=run.result["total_macs"],
            host_macs=run.host_macs,
            loss=run.result["val_loss"],
            figure=run.result[f"val_{known.headline.name}"],
            seconds=run.result["seconds"],
            run=run.run_dir.name,
            is_pilot=run.run_dir.name in pilots,
        )
        for run in runs
    ]


def longest_trunk(runs: Sequence[FinishedRun], *, size: str, seed: int, before: float) -> Trunk | None:
    """The longest trunk of a network and seed that took fewer MACs than `before`; None without one."""
    trunks = (run.trunk for run in runs if run.trunk is not None)
    usable = [trunk for trunk in trunks if (trunk.size, trunk.seed) == (size, seed) and trunk.macs < before]
    return max(usable, key=lambda trunk: trunk.macs, default=None)


def spent_by(runs: Sequence[FinishedRun], *, pilots: Collection[str]) -> tuple[float, float]:
    """MACs and seconds that pilots have spent; of a run that went on from a trunk, those after it."""
    trunks = {_tail(run.trunk.path): run.trunk for run in runs if run.trunk is not None}
    macs = seconds = 0.0
    for run in runs:
        if run.run_dir.name in pilots:
            start = trunks.get(_tail(run.began_from)) if run.began_from else None
            macs += run.result["total_macs"] - (start.macs if start else 0.0)
            seconds += run.result["seconds"] - (start.seconds if start else 0.0)
    return macs, seconds


def _tail(path: Path | str) -> tuple[str, ...]:
    """What names a checkpoint wherever the outputs lie."""
    return Path(path).parts[-3:]


def _finished(run_dir: Path, known: Family) -> FinishedRun | None:
    try:
        status, recorded, data = RunFolder(run_dir).status(), recorded_config(run_dir), recorded_data(run_dir)
        if status.get("status") != "finished" or recorded is None or family(recorded) != known.digest:
            return None
        if data is not None and not data.trains_like(known.data):
            return None
        settings, result = with_defaults(recorded), status["result"]
        events = list(read(run_dir / "journal.jsonl"))
    except (RunError, ValueError, OSError):
        return None
    size = next((one.size.name for one in known.networks if one.num_macs == result["num_macs"]), None)
    if size is None or "total_macs" not in result or not _is_comparable(settings, result, known):
        return None
    if result.get("val_loss") is None or result.get(f"val_{known.headline.name}") is None:  # not finite
        return None
    started = next((event for event in events if event["kind"] == "run_started"), {})
    born = [event for event in events if event["kind"] == "surgery" and event["committed"]]
    grown_at = born[0]["step"] * settings["dataset"]["batch_size"] if born else 0
    host_macs = training_macs(1, result["num_macs_before"], skipped=started.get("skipped_macs", 0))
    run = FinishedRun(
        run_dir=run_dir,
        size=size,
        seed=settings["rng_seed"],
        host_macs=grown_at * host_macs,
        result=result,
        began_from=started.get("resumed_from"),
        trunk=None,
    )
    return run if born else dataclasses.replace(run, trunk=_trunk(run, settings))


def _is_comparable(settings: Mapping[str, Any], result: Mapping[str, Any], known: Family) -> bool:
    """Whether a run trained one of the networks from scratch, or grew it once in the family's own way."""
    growth, own = settings["morphogenetic"], dataclasses.asdict(known.config.morphogenetic)
    if not growth["enable_tamiyo"] or growth["policy"] in ("never", "replay"):
        return not result["growth_macs"]
    free = ("schedule_at", "schedule_by", "growth_until", "plan_path", "plan_reason")
    is_alike = all(growth[name] == value for name, value in own.items() if name not in free)
    return is_alike and len(growth["schedule_at"]) == 1


def _trunk(run: FinishedRun, settings: Mapping[str, Any]) -> Trunk | None:
    folder = checkpoints_folder(run.run_dir.absolute(), checkpoint_dir=settings["checkpoint"]["checkpoint_dir"])
    for path in find_checkpoints(folder, prefix="trunk"):
        try:
            training = json.loads((path / "state.json").read_text())["training"]
            ledger = Ledger(**{field.name: training[field.name] for field in dataclasses.fields(Ledger)})
            seconds = training["total_seconds"] + training["epoch_seconds"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return Trunk(path=path, size=run.size, seed=run.seed, macs=ledger.total_macs, seconds=seconds)
    return None
