"""Damaged and hostile files, settings and messages: survived or refused; no code runs, no secret leaks."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fault_runs import CANARY, Storm, check, check_refused, esper

__all__ = ["FAULTS"]

_HOSTILE: tuple[Any, ...] = (
    *(None, True, -1, 10**30, 1e308, [], {}, [[[[[[[[]]]]]]]]),
    *("", "../../x", "\x1b[2J", "x" * 70_000),
)


def damaged_checkpoint(storm: Storm) -> None:
    """A flipped bit, a cut or a missing file in the newest of two checkpoints: the one before serves."""
    training, expected, seconds = storm.training(storm.rng.choice(["grows", "copies"]), "checkpoint.max_checkpoints=3")
    process = storm.strike(training, 0.5 * seconds)
    process.kill()
    training.end(process)
    _damage(storm, storm.rng.choice(sorted(training.checkpoints[0].iterdir())))
    training.check_whole(training.run(), expected)


def damaged_status_or_journal(storm: Storm) -> None:
    """A torn or damaged status.json or journal of an interrupted run: what can be rebuilt is rebuilt."""
    training, expected = storm.interrupted()
    assert training.run_dir is not None
    _damage(storm, training.run_dir / storm.rng.choice(["status.json", "journal.jsonl"]), may_remove=False)
    training.check_whole(training.run(), expected)


def hostile_values(storm: Storm) -> None:
    """Values of other types and sizes in a run folder's JSON files: every command works, or refuses with one line."""
    training, _ = storm.interrupted("grows")
    assert training.run_dir is not None
    paths = [path for path in training.run_dir.rglob("*.json*") if path.is_file()]
    path = storm.rng.choice(paths)
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    index = storm.rng.randrange(len(lines))
    content = json.loads(lines[index])
    _replace_one(storm, content)
    lines[index] = json.dumps(content)
    path.write_text("\n".join(lines) + "\n")
    for command in (["report", str(training.run_dir)], ["export", str(training.run_dir), "--out", "exported"]):
        ended = esper(*command, cwd=training.cwd)
        if ended.code:
            check_refused(ended)
    ended = training.run()
    if ended.code:
        check_refused(ended)


def pickles(storm: Storm) -> None:
    """Pickles that would run code, as policy, recipe, initial weights and checkpoint: not opened."""
    training, _, _ = storm.training("grows")
    hostile = training.cwd / "hostile.pt"
    hostile.write_bytes(pickle.dumps(_Canary(training.cwd / "ran")))
    key = storm.rng.choice(
        ["morphogenetic.tamiyo_policy_path", "morphogenetic.recipe", "model.init_from", "checkpoint.resume_from"]
    )
    more = ["morphogenetic=replay"] if key.endswith("recipe") else []
    check_refused(training.run(*more, f"{key}={hostile}"))
    check(not (training.cwd / "ran").exists(), "the pickle ran")


def hostile_preset(storm: Storm) -> None:
    """A preset that names code to run, or a bomb of YAML aliases: refused within seconds."""
    training, _, _ = storm.training("grows")
    folder = training.cwd / "presets" / "experiment"
    folder.mkdir(parents=True)
    ran = training.cwd / "ran"
    call = f"{{_target_: subprocess.check_call, args: [touch, {ran}]}}"
    aliases = "".join(f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(12))
    text = storm.rng.choice([
        f"hydra:\n  callbacks:\n    mine: {call}\n", f"hydra:\n  launcher: {call}\n", f"hydra:\n  sweeper: {call}\n",
        f"model: {call}\n", f"bomb:\n{aliases}", f"logging: !!python/object/apply:os.system ['touch {ran}']\n",
    ])  # fmt: skip
    (folder / "hostile.yaml").write_text(f"# @package _global_\n{text}")
    started = time.monotonic()
    many = storm.rng.choice([[], ["-m"]])
    check_refused(training.run("experiment=hostile", "--config-dir", str(folder.parent), *many), codes=(1, 2))
    check(not ran.exists(), "the preset's code ran")
    check(time.monotonic() - started < 60, "the bomb took over a minute")


def links(storm: Storm) -> None:
    """A run folder whose parts are links to somewhere else: `sync` sends nothing of it."""
    training, _ = storm.interrupted("grows")
    assert training.run_dir is not None
    secret = training.cwd / "secret.txt"
    secret.write_text(CANARY)
    target = training.run_dir / storm.rng.choice(["report.html", "recipe.json", "train.log", "git.diff"])
    target.unlink(missing_ok=True)
    target.symlink_to(secret)
    esper("sync", str(training.run_dir), "--uri", f"sqlite:///{training.cwd}/sync.db", cwd=training.cwd)
    check(not _holds(training.cwd, CANARY, but=secret), "the linked file was sent")


def secrets(storm: Storm) -> None:
    """Passwords in addresses: nowhere in what a run writes or prints, whether it ends well or not."""
    training, _, _ = storm.training("grows")
    address = storm.rng.choice([
        f"tracking.uri=http://user:{CANARY}@127.0.0.1:9/", f"tracking.uri=http://127.0.0.1:9/?token={CANARY}",
        f"redis.url=redis://user:{CANARY}@127.0.0.1:9/0", "tracking.uri=http://${oc.env:USERINFO}@127.0.0.1:9/",
    ])  # fmt: skip
    which = "bus=redis" if address.startswith("redis") else "tracking=mlflow"
    ended = training.run(which, address, env={"USERINFO": f"user:{CANARY}", "ESPER_REDIS_PASSWORD": CANARY})
    if ended.code:
        check_refused(ended)
    check(CANARY not in ended.out + ended.err, "a secret was printed")
    check(not _holds(training.cwd, CANARY), "a secret was written")


def changed_data(storm: Storm) -> None:
    """An image added, removed or replaced between two calls: told, and nothing is trained on shifted splits."""
    training, _ = storm.interrupted("streams")
    original = storm.folder / "photos"
    copy = training.cwd / "photos"
    shutil.copytree(original, copy)
    training.overrides = tuple(
        f"dataset.data_dir={copy}" if one.startswith("dataset.data_dir=") else one for one in training.overrides
    )
    check(training.run("checkpoint.auto_resume=true").code in (0, 2), "the same images elsewhere")
    images = sorted((copy / "train").rglob("*.jpg"))
    victim, source = storm.rng.sample(images, 2)
    match storm.rng.randrange(3):
        case 0:
            victim.unlink()
        case 1:
            shutil.copy(source, victim.with_name("new.jpg"))
        case _:
            victim.write_bytes(source.read_bytes())
    check_refused(training.run(), codes=(2,))


class _Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def _damage(storm: Storm, path: Path, *, may_remove: bool = True) -> None:
    content = bytearray(path.read_bytes())
    match storm.rng.choice(["flip", "cut", "empty", "remove"] if may_remove else ["flip", "cut", "empty"]):
        case "flip" if content:
            content[storm.rng.randrange(len(content))] ^= 1 << storm.rng.randrange(8)
            path.write_bytes(content)
        case "cut":
            path.write_bytes(content[: storm.rng.randrange(len(content) + 1)])
        case "remove":
            path.unlink()
        case _:
            path.write_bytes(b"")


def _replace_one(storm: Storm, content: Any) -> None:
    """Replace one value somewhere in JSON data."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            places.append((node, key))
            visit(value)

    visit(content)
    if places:
        node, key = storm.rng.choice(places)
        node[key] = storm.rng.choice(_HOSTILE)


def _holds(folder: Path, text: str, *, but: Path | None = None) -> bool:
    command = ["grep", "-rlaF", "--", text, str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return any(Path(path) != but for path in found)


FAULTS: dict[str, Callable[[Storm], None]] = {
    "damaged checkpoint": damaged_checkpoint,
    "damaged status or journal": damaged_status_or_journal,
    "hostile values": hostile_values,
    "pickles": pickles,
    "hostile preset": hostile_preset,
    "links": links,
    "secrets": secrets,
    "changed data": changed_data,
}
