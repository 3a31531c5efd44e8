"""Whatever is wrong with a file of a run folder, a command works or ends with one line."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esper import fit
from esper.cli import main
from esper.configs import TolariaConfig
from esper.errors import EsperError
from esper.files import sha256
from esper.sweep.manifest import Job, Member, freeze, write_launcher
from esper.tolaria.checkpoints import files as checkpoint
from esper.tracking.files import write_members

DEBUG = ("experiment=debug", "debug_mode=false", "morphogenetic=off", "tracking=none", "device=cpu")
HOSTILE = [None, True, -1, 10**30, 1e300, "", "../../x", [], {}, [[[]]], {"a": {"b": 1}}, 0, 0.5]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("hostile") / "out"
    fit(*DEBUG, run_dir=run_dir)
    return run_dir


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in JSON data."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, entry in inner for place in places(entry, (*path, key)))]


def replace(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replace(copy[path[0]], path[1:], new)
    return copy


def damage(data: st.DataObject, file: Path) -> None:
    content = file.read_bytes()
    how = data.draw(st.sampled_from(["flip", "cut", "replace"]))
    if how == "flip":
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content = content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]
    elif how == "cut":
        content = content[: data.draw(st.integers(0, len(content)))]
    elif file.suffix in (".json", ".jsonl"):
        lines = content.splitlines() if file.suffix == ".jsonl" else [content]
        number = data.draw(st.integers(0, len(lines) - 1))
        value = json.loads(lines[number])
        new = replace(value, data.draw(st.sampled_from(places(value))), data.draw(st.sampled_from(HOSTILE)))
        lines[number] = json.dumps(new).encode()
        content = b"".join(line + b"\n" for line in lines)
    file.write_bytes(content)
    if file.parent.name.startswith("step-") and file.name != "manifest.json" and data.draw(st.booleans()):
        manifest = json.loads((file.parent / "manifest.json").read_text())  # somebody made the checksums fit
        manifest["sha256"] = {name: sha256(file.parent / name) for name in checkpoint._FILES}
        manifest["sha256"]["manifest.json"] = checkpoint._manifest_sha256(manifest)
        (file.parent / "manifest.json").write_text(json.dumps(manifest))


def run(*arguments: str) -> None:
    """Run a command of `esper`; it works, or prints one line."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code in (0, 1, 2)
    assert ended.value.code == 0 or err.getvalue().count("\n") <= 1


@pytest.fixture(scope="module")
def sweep(finished: Path) -> Path:
    """A sweep of one member, which has finished and is in MLflow; its folder."""
    sweep_dir = finished.parent / "sweep"
    member = Member(sweep_dir=sweep_dir, name="out", overrides=("rng_seed=0",), cwd="/", siblings={})
    shutil.copytree(finished, member.run_dir)
    freeze(member, TolariaConfig())
    member.set_job(Job(queue="local", id="2147483647@1.00"))
    member.begin()
    member.end("finished", metric=0.5)
    write_launcher(sweep_dir, queue="local", options={})
    write_members(sweep_dir, {"out": ["rng_seed=0"]})
    run("sync", str(sweep_dir), "--uri", uri_of(sweep_dir))
    assert (member.run_dir / "mlflow.json").exists()
    return sweep_dir


def uri_of(sweep_dir: Path) -> str:
    return f"sqlite:///{sweep_dir.parent / 'mlflow.db'}"  # one for all examples: its tables take seconds


@pytest.mark.long
@pytest.mark.parametrize("is_checkpoint", [False, True])
@settings(max_examples=13, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_command_works_or_ends_with_one_line(finished: Path, is_checkpoint: bool, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        shutil.copytree(finished, out)
        names = ["status.json", "config.yaml", "journal.jsonl", "recipe.json", "data.json"]
        newest = max((out / "checkpoints").glob("step-*"))
        of_run = [out / name for name in names if (out / name).exists()]
        file = data.draw(st.sampled_from(sorted(newest.iterdir()) if is_checkpoint else of_run))
        damage(data, file)
        run("report", str(out))
        run("export", str(out), "--out", str(Path(folder, "exported")))
        with contextlib.suppress(EsperError), contextlib.redirect_stdout(io.StringIO()):
            fit(*DEBUG, run_dir=out)


@pytest.mark.long
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_command_on_a_sweep_works_or_ends_with_one_line(sweep: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "sweep")
        shutil.copytree(sweep, copy)
        names = ["sweep.json", "out/status.json", "out/journal.jsonl", "out/mlflow.json", "out/config.yaml"]
        names += [f".sweep/{name}.json" for name in ("launcher", "out/member", "out/job", "out/outcome")]
        file = copy / data.draw(st.sampled_from([*names, ".sweep/out/config.yaml"]))
        damage(data, file)
        run("sync", str(copy), "--uri", uri_of(sweep))
        run("sweep", "status", str(copy))
