"""`esper predict` and `esper evaluate`."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from esper import plugins
from esper.configs import DatasetConfig, ModelConfig, TaskConfig
from esper.inference.export import export
from tests.conftest import tiny_config, use
from tests.inference.conftest import Seen, command, train
from tests.text import text_config, write_texts


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_folder_gives_a_table_and_a_page_of_the_surest_mistakes(
    trained: Seen, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "found.csv"
    assert command("predict", trained.run_dir, pictures, "--out", out, "--top-k", 3, "--device", "cpu") == 0
    found = rows(out.read_text())
    assert [*found[0]] == ["path", "true_class", "class", "probability", "class_2", "probability_2", "class_3",
                           "probability_3"]  # fmt: skip
    labels = {int(Path(row["path"]).stem): row["class"] for row in found}
    assert [labels[i] for i in range(len(labels))] == [f"stripes{i}" for i in trained.outputs.argmax(1).tolist()]
    page = out.with_suffix(".html").read_text()
    wrong = [row for row in found if row["class"] != row["true_class"]]
    surest = max(wrong, key=lambda row: float(row["probability"]))
    first = page[page.index("The surest mistakes") :]
    assert re.search(r'title="([^"]*)"', first)[1] == surest["path"]  # type: ignore[index]
    assert first.count("<figure") >= min(48, len(wrong))
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    share = trained.result["test_accuracy"]
    assert f"({100 * share:.1f} %) predicted right" in capsys.readouterr().out
    assert share == pytest.approx(1 - len(wrong) / len(found))


def test_what_is_no_picture_is_told_in_a_line_each_and_the_others_are_predicted(
    trained: Seen, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(pictures / "stripes3", folder)
    num = len(list(folder.iterdir()))
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("notes")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "link").symlink_to(pictures)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{folder}\n\n{tmp_path / 'nowhere.png'}\n"))
    assert command("predict", trained.run_dir, "-", "--out", "-", "--device", "cpu") == 1
    written = capsys.readouterr()
    assert len(rows(written.out)) == num
    lines = sorted(line.removeprefix("not read: ") for line in written.err.splitlines())
    assert len(lines) == 4
    for start, end in (("broken.png", "repair or remove it"), ("pipe.jpg", "not a regular file"), ("", "1 (1 .txt)")):
        assert any(start in line and line.endswith(end) for line in lines), (start, lines)
    assert f"{tmp_path / 'nowhere.png'}: no such file or folder" in lines
    assert command("predict", trained.run_dir, folder / "broken.png", "--out", "-", "--device", "cpu") == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("no picture could be read")


def test_the_test_split_is_evaluated_to_the_runs_result_and_named(
    trained: Seen, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("evaluate", trained.run_dir, "--device", "cpu") == 0
    written = capsys.readouterr()
    num = len(trained.targets)
    assert (
        f"evaluates on the test split of synthetic, {num} images: if this result decides between networks, "
        in written.err
    )
    shown = f"{100 * trained.result['test_accuracy']:.2f} %"
    assert re.search(rf"^accuracy +{shown} +{shown}$", written.out, re.MULTILINE)
    assert "confusion: rows are true classes" in written.out

    assert command("evaluate", trained.run_dir, "--json", "--device", "cpu") == 0
    found = json.loads(capsys.readouterr().out)
    exported = export(trained.run_dir, tmp_path / "out")
    assert command("evaluate", exported, pictures, "--json", "--device", "cpu") == 0
    given = json.loads(capsys.readouterr().out)
    for name in ("accuracy", "top5", "balanced_accuracy", "loss"):
        assert found[name] == pytest.approx(trained.result[f"test_{name}"], abs=1e-6)
        assert given[name] == pytest.approx(found[name], abs=1e-6)
    assert given["confusion"] == found["confusion"] == trained.result["test_confusion"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "EXPORT"], "an export does not say what is its test split; name data: esper evaluate"),
        (["evaluate", "RUN", "nowhere"], "nowhere: no folder with a subfolder for each class"),
        (["evaluate", "RUN", "."], "not a class of the network, which are stripes0, stripes1"),
        (["predict", "RUN", "x.png", "--out", "table.txt"], "must be a .csv file, or - for standard output"),
        (["predict", "RUN", "x.png", "--out", "taken.csv"], "--out taken.csv: is a folder; name a file"),
        (["predict", "RUN", "x.png", "--out", "page.csv"], "--out page.html: is a folder; name a file"),
        (["predict", "RUN", "x.png", "--out", "file/x.csv"], "/file is no folder; choose another place"),
        (["predict", "RUN", "rows.csv", "--out", "./rows.csv"], "--out ./rows.csv: is what to predict"),
        (["predict", "nowhere", "x.png"], "is neither the folder of a run (it has no config.yaml) nor what esper"),
        (["predict", "RUN", "rows.csv"], "rows.csv: no table could be read"),
        (["evaluate", "RUN", "--device", "cuda:77"], "device=cuda:77: this machine has no "),
        (["predict", "RUN", "x.png", "--device", "meta"], "device=meta: no such device; there are auto, cpu"),
    ],
)
def test_bad_input_is_one_line(
    trained: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("else", "taken.csv", "page.html"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    places = {"RUN": str(trained.run_dir), "EXPORT": str(tmp_path / "exported")}
    if "EXPORT" in arguments:
        export(trained.run_dir, tmp_path / "exported")
    command_line = [places.get(argument, argument) for argument in arguments]
    assert command(*command_line, *([] if "--device" in arguments else ["--device", "cpu"])) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("target", [None, "sum"])
def test_rows_are_predicted_and_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str | None
) -> None:
    plugins.offer("model", "mlp", lambda spec: torch.nn.Linear(4, spec.num_outputs))
    values = np.random.default_rng(0).normal(size=(80, 4))
    sums = (values[:, 0] - values[:, 1]).tolist()
    inputs = [["400", "400.5", "401", "401.5"], *values.tolist()]  # wavelengths, say
    targets = [[value] for value in ("sum", *sums)]
    order = (inputs, targets) if target is None else (targets, inputs)
    words = [["sum"], *[["much"]] * 80]
    for name, columns in (("rows.csv", order), ("new.csv", (inputs,)), ("words.csv", (inputs, words))):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([*itertools.chain(*parts)] for parts in zip(*columns, strict=True))
    config = tiny_config(
        dataset=DatasetConfig(name="arrays", data_dir=str(tmp_path / "rows.csv"), target_type="number", target=target,
                              batch_size=8, val_split=0.3),
        model=ModelConfig(source="plugin", name="mlp"),
        task=TaskConfig(name="regression"),
        morphogenetic__enable_tamiyo=False,
    )  # fmt: skip
    seen = train(config, tmp_path / "rows" / "run")
    out = export(seen.run_dir, tmp_path / "out")
    tables = []
    for name in ("rows.csv", "new.csv", "words.csv"):
        assert command("predict", seen.run_dir, tmp_path / name, "--out", "-", "--device", "cpu") == 0
        tables.append([row["value"] for row in rows(capsys.readouterr().out)])
    assert tables[0] == tables[1] == tables[2]
    errors = np.array(tables[0], dtype=float) - sums
    for folder in (seen.run_dir, out):
        assert command("evaluate", folder, tmp_path / "rows.csv", "--json", "--device", "cpu") == 0
        assert json.loads(capsys.readouterr().out)["mse"] == pytest.approx(np.mean(np.square(errors)), rel=1e-4)
    for name, message in (("new.csv", "has no targets"), ("words.csv", "the targets are not numbers")):
        assert command("evaluate", seen.run_dir, tmp_path / name, "--device", "cpu") == 2
        assert f"{name}: {message}" in capsys.readouterr().err.splitlines()[-1]


def test_labels_of_pictures_are_evaluated_from_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(80, 3, 8, 8)).astype(np.float32)
    targets = (inputs.mean(axis=(2, 3)) > 0).astype(np.float32)
    np.savez(tmp_path / "labels.npz", inputs=inputs, targets=targets)
    np.savez(tmp_path / "one.npz", inputs=inputs, targets=targets[:, 0])
    (tmp_path / "pictures" / "0").mkdir(parents=True)
    config = tiny_config(
        dataset=DatasetConfig(name="arrays", data_dir=str(tmp_path / "labels.npz"), target_type="number", batch_size=8,
                              val_split=0.3),
        task=TaskConfig(name="multilabel"),
        morphogenetic__enable_tamiyo=False,
    )  # fmt: skip
    seen = train(config, tmp_path / "labels" / "run")
    found = []
    for data in ([], [tmp_path / "labels.npz"]):
        assert command("evaluate", seen.run_dir, *data, "--json", "--device", "cpu") == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["f1"] == pytest.approx(seen.result["test_f1"], abs=1e-6)
    assert found[1].keys() == found[0].keys()
    for data, message in (
        ("one.npz", "targets (80,): labels are numbers 0 or 1 of the shape (80, 3), in an .npz"),
        ("pictures", "folders name a class for each picture, but the network's task is multilabel; give an .npz"),
    ):
        assert command("evaluate", seen.run_dir, tmp_path / data, "--device", "cpu") == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_columns_of_a_table_are_found_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugins.offer("model", "mlp", lambda spec: torch.nn.Linear(2, spec.num_outputs))
    values = np.random.default_rng(0).normal(size=(80, 2))
    table = {"a": values[:, 0], "b": values[:, 1], "sum": values[:, 0] - 2 * values[:, 1], "note": values[:, 0]}

    def write(file: str, *columns: str, **renamed: str) -> Path:
        rows = zip(*(table[name].tolist() for name in columns), strict=True)
        with (tmp_path / file).open("w", newline="") as opened:
            csv.writer(opened).writerows([[renamed.get(name, name) for name in columns], *rows])
        return tmp_path / file

    write("rows.csv", "a", "b", "sum")
    config = tiny_config(
        dataset=DatasetConfig(name="arrays", data_dir=str(tmp_path / "rows.csv"), target_type="number", batch_size=8,
                              val_split=0.3),
        model=ModelConfig(source="plugin", name="mlp"),
        task=TaskConfig(name="regression"),
        morphogenetic__enable_tamiyo=False,
    )  # fmt: skip
    run_dir = train(config, tmp_path / "rows" / "run").run_dir
    out = export(run_dir, tmp_path / "out")
    assert json.loads((out / "model.json").read_text())["interface"]["input_names"] == ["a", "b"]

    def predicted(network: Path, file: Path) -> tuple[list[str], list[str]]:
        assert command("predict", network, file, "--out", "-", "--device", "cpu") == 0
        written = capsys.readouterr()
        return [row["value"] for row in rows(written.out)], written.err.splitlines()

    expected = predicted(run_dir, tmp_path / "rows.csv")
    other = write("other.csv", "note", "sum", "b", "a")
    for network in (run_dir, out):
        found, told = predicted(network, other)
        assert found == expected[0]
        assert told == [f"not read: {other}: columns that the network does not know: note"]
        assert command("evaluate", network, other, "--json", "--device", "cpu") == 0
        assert "not read" in capsys.readouterr().err
    assert command("predict", out, write("less.csv", "b", "note", note="A"), "--out", "-", "--device", "cpu") == 2
    assert "lacks columns that the network reads: a" in capsys.readouterr().err

    description = json.loads((out / "model.json").read_text())
    del description["interface"]["input_names"]  # as exported by earlier versions: columns as they stand
    (out / "model.json").write_text(json.dumps(description))
    assert predicted(out, write("swapped.csv", "b", "a"))[0] != expected[0] == predicted(out, tmp_path / "rows.csv")[0]


def test_a_language_model_is_evaluated_on_its_test_split_and_on_another_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "text" / "run"
    config = text_config(write_texts(tmp_path / "texts"), optimization__max_epochs=1)
    use(config, run_dir, lambda trainer: trainer.train())
    result = json.loads((run_dir / "status.json").read_text())["result"]
    found = []
    for data in ([], [tmp_path / "texts"]):
        assert command("evaluate", run_dir, *data, "--json", "--device", "cpu") == 0
        found.append(json.loads(capsys.readouterr().out)["bits_per_byte"])
    assert found[0] == pytest.approx(result["test_bits_per_byte"], rel=1e-6)
    assert found[1] == pytest.approx(found[0], rel=0.2)
