"""`fit` with networks and data of the user's, as objects and as files of rows."""

from __future__ import annotations

import functools
import importlib
import linecache
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from esper import fit, load
from esper.configs import DatasetConfig, ModelConfig
from esper.data import DataSpec, load_splits
from esper.data.own import own_dataset
from esper.errors import ConfigError, DataError
from esper.launch.own import own_overrides
from esper.models import build_host
from esper.tracking import read
from tests.test_fit_neighbours import hold_the_first
from tests.text import write_texts

QUICK = ("morphogenetic=stack", "tracking=none", "device=cpu", "dataset.batch_size=16", "dataset.val_split=0.4",
         "optimization.max_epochs=3")  # fmt: skip


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x)).relu()


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


class TextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x)).relu()


class TextNet(nn.Module):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.embedding = nn.Embedding(spec.num_outputs, 8)
        self.blocks = nn.Sequential(TextBlock(8), TextBlock(8))
        self.head = nn.Linear(8, spec.num_outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(tokens)))  # type: ignore[no-any-return]


def squares(num: int = 120) -> tuple[Tensor, Tensor]:
    """Images, darker or brighter."""
    labels = torch.arange(num) % 2
    noise = torch.randn(num, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return 5.0 + 40.0 * labels[:, None, None, None] + noise, labels


def test_a_text_network_as_an_object_grows_on_text_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "texts")
    text = ("dataset=text", "dataset.data_dir=texts", "dataset.context=16", "dataset.epoch_windows=64")
    outcome = fit(*QUICK, *text, model=TextNet, task="language_model")
    assert outcome.result is not None
    assert outcome.result["num_grown"] > 0
    assert load(outcome.run_dir, model=TextNet).predict("the cat sat").label
    assert next(read(outcome.run_dir / "journal.jsonl"))["noun"] == "windows"


def test_a_module_grows_and_the_same_call_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = Net()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    outcome = fit(*QUICK, model=network, data=squares(), task="classification")
    assert outcome.result is not None
    assert outcome.result["test_accuracy"] == 1.0
    assert '"blocks.0"' in (outcome.run_dir / "recipe.json").read_text()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert fit(*QUICK, model=network, data=squares(), task="classification").run_dir == outcome.run_dir


def test_images_of_ones_own_are_mixed_and_erased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mixes = ("dataset.mixup_alpha=0.2", "dataset.cutmix_alpha=1.0", "dataset.random_erasing=0.25")
    network = Net()
    plain, mixed = (fit(*QUICK, "morphogenetic=off", *more, model=network, data=squares()) for more in ((), mixes))
    assert plain.result is not None
    assert mixed.result is not None
    assert mixed.result["val_loss"] != plain.result["val_loss"]


def test_other_weights_code_or_data_are_another_run() -> None:
    torch.manual_seed(0)
    network = Net()
    same = own_overrides(network, squares(), None)
    assert own_overrides(network, squares(), None) == same
    assert own_overrides(Net(), squares(), None) != same
    assert own_overrides(network, squares(60), None) != same
    assert own_overrides(Net, None, None) == own_overrides(Net, None, None)
    assert own_overrides(lambda: Net(4), None, None) != own_overrides(lambda: Net(8), None, None)


def model_of(model: object) -> list[str]:
    return own_overrides(model, None, None)


def test_what_a_network_uses_is_part_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import layers
from torch import nn
WIDTHS, BLOCKS, KIND = [3, 4], {{"a": {block}}}, {{"a", "b", "c"}}
class Net(nn.Module):
    def __init__(self, act=lambda x: x):
        self.blocks = [BLOCKS[kind](width, layers.{layer}) for width in WIDTHS if "a" in {{"a", "b", "c"}} and KIND]
"""
    monkeypatch.syspath_prepend(tmp_path)

    def digest(widths: str = "[3, 4]", one: str = "1") -> str:
        for name in ("net", "layers"):
            sys.modules.pop(name, None)
        linecache.clearcache()
        (tmp_path / "net.py").write_text(code.format(block="layers.other", layer="one").replace("[3, 4]", widths))
        (tmp_path / "layers.py").write_text(f"def one(): return {one}\ndef other(): return 2\n")
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        importlib.invalidate_caches()
        return model_of(importlib.import_module("net").Net)[2]

    first = digest()
    assert digest() == first
    assert digest(widths="[3, 5]") != first
    assert digest(one="11") != first
    digest()  # the files as at first
    script = "import net; from esper.launch.own import own_overrides as own; print(own(net.Net, None, None)[2])"
    env = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == first


def test_objects_that_make_a_network_are_part_of_its_run() -> None:
    class Factory:
        def __init__(self, width: int) -> None:
            self.width = width

        def __call__(self) -> nn.Module:
            return Net(self.width)

    torch.manual_seed(0)
    network = Net()
    for one, other in [
        (Factory(4), Factory(8)),
        (Factory(4).__call__, Factory(8).__call__),
        (functools.partial(Net, width=4), functools.partial(Net, width=8)),
        (lambda: network, lambda: Net()),
    ]:
        assert model_of(one) == model_of(one)
        assert model_of(one)[2] != model_of(other)[2]


@pytest.mark.parametrize(
    "overrides",
    [("morphogenetic.copy_init=fresh",), ("morphogenetic.policy=replay", "morphogenetic.recipe_path=r.json")],
)
def test_a_module_is_no_source_of_new_weights(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"but Net is a module that has weights already; pass its class"):
        fit(*QUICK, *overrides, model=Net(), data=squares())


def test_a_function_must_make_a_new_network_each_time() -> None:
    network, spec = Net(), DataSpec(inputs=(1, 6, 6), num_outputs=2)
    own_overrides(lambda: network, None, None)
    config = ModelConfig(source="plugin", name="own_model")
    assert build_host(config, spec) is network
    with pytest.raises(ConfigError, match=r"gave the same network twice"):
        build_host(config, spec)


def test_lazy_layers_get_their_shapes() -> None:
    own_overrides(lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), None, None)
    built = build_host(ModelConfig(source="plugin", name="own_model"), DataSpec(inputs=(1, 6, 6), num_outputs=2))
    assert [tuple(p.shape) for p in built.parameters()] == [(2, 36), (2,)]
    assert built.training


def test_each_of_two_calls_at_once_trains_on_its_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    is_held = hold_the_first(monkeypatch)
    images, labels = squares()
    call = functools.partial(fit, *QUICK, "morphogenetic=off", model=Net)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(call, data=(images, labels))
        assert is_held.wait(60)  # it has not read its data
        outcomes = [pool.submit(call, data=(images[:80], labels[:80])).result(), first.result()]
    assert len({(outcome.run_dir / "data.json").read_text() for outcome in outcomes}) == 2


def test_splits_are_those_given_or_drawn_by_no_seed() -> None:
    images, labels = squares()
    one, pair = own_dataset((images, labels), test_split=0.25), own_dataset([(images, labels)] * 2, test_split=0.25)
    assert (len(one.train), len(one.test), one.val) == (90, 30, None)
    assert (len(pair.train), len(pair.test), pair.val) == (120, 120, None)
    three = own_dataset([TensorDataset(images[i::3], labels[i::3]) for i in range(3)], test_split=0.25)
    assert three.val is not None
    assert torch.equal(three.val.images, images[1::3])


class Examples(TorchDataset[Any]):
    """Two examples of the same parts."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return self.parts


class Keyed(Examples):
    def __getitem__(self, index: int) -> Any:
        return {"pixels": torch.zeros(2), "label": index}


class Named(Examples):
    keys = ("first", "second")


def test_a_dataset_may_have_keys_of_its_own() -> None:
    data = Named(torch.ones(3), 0)
    assert len(own_dataset((data, data), test_split=0.25).train) == 2


class Missing(Examples):
    def __getitem__(self, index: int) -> Any:
        return Path(f"{index}.png").open(), index


class Stream(IterableDataset[Any]):
    """It says how long it is, but has no places."""

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[tuple[float, int]]:
        return iter([(0.0, 1), (1.0, 0)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.zeros(4, 2), torch.zeros(3)), r"data: a split is not two tensors of equal length; give \(inputs"),
        ((torch.zeros(4, 2, 2), torch.zeros(4)), r"data: inputs torch.float32 \(4, 2, 2\): .* flatten others to rows"),
        ((torch.full((4, 2), torch.nan), torch.zeros(4)), r"data: inputs hold NaN or infinity"),
        ((torch.zeros(0, 2), torch.zeros(0)), r"data: inputs \(0, 2\): a split is empty"),
        ((np.array(["a", "b"]), np.zeros(2)), r"data: a split is not two tensors of equal length"),
        ((torch.zeros(4, 2), torch.tensor([0, 1, -1, 0])), r"data: whole numbers as targets are classes"),
        ((torch.zeros(4, 2), torch.tensor([0, 3, 1, 0])), r"data: no example is of class 2; number the 3 classes 0, 1"),
        ((torch.zeros(4, 2), torch.tensor([1, 2, 1, 2])), r"data: no example is of class 0; number the 2 classes 0, 1"),
        ((torch.zeros(4, 2, dtype=torch.cfloat), torch.zeros(4)), r"data: inputs are complex; .*view_as_real"),
        ((torch.eye(4).to_sparse(), torch.zeros(4)), r"data: inputs are sparse; .*to_dense"),
        (
            (torch.zeros(4, 6, 5, 3, dtype=torch.uint8), torch.zeros(4)),
            r"\(4, 6, 5, 3\) seem to have their channels last",
        ),
        (17, r"data: int is no map-style Dataset"),
        (Stream(), r"data: Stream is no map-style Dataset, with a length"),
        (DataLoader(Examples(0.0, 1)), r"data: DataLoader .* give its dataset: loader.dataset"),
        ({"train": 1}, r"data: dict is no map-style Dataset of pairs; give its values"),
        (Examples(Image.new("RGB", (2, 2)), 1), r"data: Examples\[0\]: its input is of type Image; .*PILToTensor"),
        (Examples(0.0, "cat"), r"data: Examples\[0\]: its target is of type str; .* numbers the classes"),
        (Examples((0.0, torch.zeros(2)), 1), r"data: Examples\[0\]: its input is of type tuple, of length 2"),
        (Examples(0.0, 1, 2), r"data: Examples\[0\] is of type tuple, of length 3; give a Dataset of pairs"),
        (Keyed(), r"data: Keyed\[0\] is of type dict \(pixels, label\); give a Dataset of pairs"),
        (Missing(), r"data: Missing\[0\] fails: FileNotFoundError: .*0.png.*:\d+\)"),
        ("nowhere", r"data=nowhere: "),
    ],
)
def test_data_that_cannot_be_used_are_one_line(data: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        own_dataset(data, test_split=0.1)
    assert "\n" not in str(raised.value)


def test_a_network_that_does_not_take_the_data_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"model.name=Linear: cannot take inputs of shape \(1, 6, 6\), float32: Run"):
        fit(*QUICK, model=nn.Linear(7, 2), data=squares())
    assert not list(tmp_path.rglob("config.yaml"))


class Dense(Net):
    """A map of logits for every pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)  # type: ignore[no-any-return]


class Pair(Net):
    """Logits and features."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


class Scalar(Net):
    """One number for a whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sum()


class Ids(nn.Module):
    """Reads whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(4, 8), nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        (Dense, "classification", r"model.name=Dense: gives \(2, 4, 6, 6\) for 2 examples, from which task=classific"),
        (Dense, "regression", r"task=regression: the network gives 144 numbers an example, the targets have 1"),
        (Dense, "multilabel", r"model.name=Dense: gives \(2, 4, 6, 6\) .* task=multilabel cannot learn targets \(2,\)"),
        (Pair, "classification", r"model.name=Pair: gives a tuple for 2 examples; .* return the one to learn from"),
        (Scalar, "classification", r"model.name=Scalar: gives a tensor \(\) for 2 examples; it must give one tensor"),
    ],
)
def test_an_output_that_the_task_cannot_learn_from_is_one_line(
    model: type[nn.Module], task: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = squares()
    with pytest.raises(ConfigError, match=message):
        fit(
            *QUICK,
            "morphogenetic=off",
            model=model,
            data=(images, labels if task == "classification" else labels.float()),
            task=task,
        )
    assert not list(tmp_path.rglob("journal.jsonl"))


def test_a_network_is_tried_out_once_and_then_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    batches: list[int] = []

    class Counted(Net):
        def forward(self, x: Tensor) -> Tensor:
            batches.append(len(x))
            return super().forward(x)

    fit(*QUICK, "morphogenetic=off", model=Counted, data=squares())
    assert batches[:3] == [2, 1, 16]


def test_a_network_that_needs_whole_numbers_is_told_how_to_make_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ids = torch.randint(0, 4, (120, 5), generator=torch.Generator().manual_seed(0))
    data = ids, ((ids > 1).sum(1) > 2).long()
    with pytest.raises(ConfigError, match=r"give an embedding x.long\(\).clamp\(0, SIZE - 1\), and set dataset.normal"):
        fit(*QUICK, model=Ids, data=data)

    class Made(Ids):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.long().clamp(0, 3))

    off = ("morphogenetic=off", "dataset.normalize=false", "optimization.learning_rate=1", "optimization.max_epochs=20")
    outcome = fit(*QUICK, *off, model=Made, data=data)
    assert outcome.result is not None
    assert outcome.result["test_accuracy"] > 0.8  # by chance: 0.5; needs the ids themselves


def test_arrays_of_numpy_are_tensors() -> None:
    inputs, targets = np.arange(80.0).reshape(40, 2), np.arange(40) % 2
    found = own_dataset((inputs, targets), test_split=0.25)
    same = own_dataset((torch.from_numpy(inputs), torch.from_numpy(targets)), test_split=0.25)
    assert torch.equal(found.train.images, same.train.images)  # type: ignore[union-attr]


def test_a_dataset_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Noisy(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            image, label = super().__getitem__(index)
            return image + torch.rand(()), label

    monkeypatch.chdir(tmp_path)
    outcome = fit(*QUICK, "morphogenetic=off", model=Net, data=Noisy(*squares()))
    assert outcome.exit_code == 0


@pytest.mark.parametrize(
    ("overrides", "data", "message"),
    [
        (
            ("model=vit",),
            (torch.zeros(80, 3, 8, 16), torch.arange(80) % 2),
            r"model=vit: reads square images, but .* 8 x 16",
        ),
        (
            ("model=resnet18",),
            (torch.zeros(80, 5), torch.arange(80) % 2),
            r"model=resnet18: reads images, but .*\(5,\)",
        ),
        (
            ("dataset.mixup_alpha=0.2",),
            (torch.rand(80, 5), torch.arange(80) % 2),
            r"dataset.mixup_alpha=0.2: is for images, but .* shape \(5,\)",
        ),
        (
            ("dataset.rand_augment_num_ops=2",),
            (torch.rand(80, 3, 8, 8), torch.arange(80) % 2),
            r"dataset.rand_augment_num_ops=2: is for uint8 images of 1 or 3 channels, but .* floating-point values",
        ),
        (
            ("dataset.rand_augment_num_ops=2",),
            (torch.zeros(80, 2, 8, 8, dtype=torch.uint8), torch.arange(80) % 2),
            r"dataset.rand_augment_num_ops=2: is for uint8 images of 1 or 3 channels, but .* have 2 channels",
        ),
        (("task=classification",), (squares()[0], torch.rand(120)), r"task=classification: .* are numbers; use"),
        (("task=regression",), squares(), r"task=regression: the targets of dataset plugin are classes; use"),
        (
            ("task=multilabel",),
            (squares()[0], torch.full((120, 2), 2.0)),
            r"task=multilabel: the targets of dataset plugin hold 2; give 1 where a label applies and 0 elsewhere",
        ),
        (
            ("task=multilabel",),
            (squares()[0], torch.full((120, 2), 0.5)),
            r"task=multilabel: .* plugin hold 0.5; give 1",
        ),
    ],
)
def test_data_task_and_network_that_do_not_fit_are_one_line(
    overrides: tuple[str, ...], data: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = None if overrides[0].startswith("model") else Net
    with pytest.raises(ConfigError, match=message):
        fit(*QUICK, "morphogenetic=off", *overrides, model=model, data=data)


def rows_of(tmp_path: Path, **settings: object) -> DatasetConfig:
    defaults = {"name": "arrays", "data_dir": str(tmp_path / "rows.csv"), "batch_size": 4, "val_split": 0.3}
    return DatasetConfig(**{**defaults, **settings})  # type: ignore[arg-type]


def test_rows_of_a_csv_are_standardised_by_the_training_split(tmp_path: Path) -> None:
    lines = [f"{i},{1000 * i},{'ab'[i % 2]}" for i in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["x,y,kind", *lines]))
    splits = load_splits(rows_of(tmp_path), rng_seed=0)
    assert splits.spec == DataSpec(inputs=(2,), num_outputs=2, output_names=("a", "b"))
    assert splits.train.images.mean(0).tolist() == pytest.approx([255 * mean for mean in splits.mean])  # type: ignore[union-attr]
    other = load_splits(rows_of(tmp_path), rng_seed=1)
    assert len(other.test) == len(splits.test) == 6
    assert torch.equal(other.test.images, splits.test.images)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"rows of numbers: there are no rows below a line of column names"),
        ("x,y,kind\n", r"rows of numbers: there are no rows below a line of column names"),
        ("x,x,kind\n1,2,a\n", r"rows of numbers: column names repeat"),
        ("x,y,kind\n0,1,2,a\n", r"rows of numbers: line 2 has 4 values for 3 column names"),
        ("x,y,kind\n1,,a\n", r"rows of numbers: column 'y' has nothing in row 1, not a number; fill it in"),
        ("x,y,kind\n1,2,a\n3,Rome,b\n", r"rows of numbers: column 'y' has 'Rome' in row 2, not a number; .* leave it"),
        ("x,y,kind\n1,2,a\n3,nan,b\ninf,nan,b\n", r"column 'y' has nan in row 2; fill it in, or leave out .* \(2\)"),
        ("x;y;kind\n1;2;a\n", r"no column but the target, 'x;y;kind'; separate columns by commas"),
        ("x,y,größe\n1,2,a\n", r"rows of numbers: it is not in UTF-8; save it in that encoding"),
        ("x,y,kind\n1,2,\n", r"the target misses 1 values; give each row one class"),
        ("kind\na\n", r"rows of numbers: there is no column but the target, 'kind'$"),
        ("x,y,kind\n1,2,a\n", r"the train split has 1 rows, 1 of them of class 'a'; use more rows"),
        ("x,y,kind\n1,2,a\n3,4,b\n", r"split has \d rows, \d of them of class '[ab]'; use more rows"),
        ("x,y,kind\n1,1e300,a\n", r"rows of numbers: column 'y' has inf in row 1; fill it in"),
        (",x,kind\n0,1,a\n1,2,b\n", r"column 1 is named '', as pandas names its index; leave it out"),
        ("0.5,2,1\n0.7,3,0\n", r"the first line holds numbers \(0.5, 2, 1\), not names; put a line of column names"),
    ],
)
def test_a_csv_that_cannot_be_used_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rows.csv").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=message):
        load_splits(rows_of(tmp_path), rng_seed=0)


def test_columns_may_be_named_by_their_places(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("\n".join(["0,1,2", *(f"{i},{-i},{i % 2}" for i in range(60))]))
    assert load_splits(rows_of(tmp_path), rng_seed=0).input_names == ("0", "1")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            {"when": np.array(["2026-01-01", "2026-01-02"], dtype="datetime64[s]")},
            r"column 'when' holds dates or times",
        ),
        ({"many": [[1.0, 2.0], [3.0, 4.0]]}, r"column 'many' has 2 values in row 1, not a number; fill it in"),
        ({"__index_level_0__": [4, 7]}, r"column 1 is named '__index_level_0__', as pandas names its index"),
    ],
)
def test_a_parquet_that_cannot_be_used_is_one_line(tmp_path: Path, column: dict[str, Any], message: str) -> None:
    parquet.write_table(pyarrow.table({**column, "x": [1.0, 2.0], "kind": ["a", "b"]}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=message):
        load_splits(rows_of(tmp_path, data_dir=str(tmp_path / "rows.parquet")), rng_seed=0)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.zeros((40, 2), dtype=int), r"the target is \(40, 2\), and classes are \(N,\)"),
        (np.array(3), r"inputs \(40, 3\) and targets \(\); allowed are"),
        (np.where(np.arange(40) % 2, np.nan, 1.0), r"the target misses 20 values"),
        (b"PK\x03\x04damaged", r"cannot be read as rows of numbers: it is no .npz, or damaged$"),
        (b"x,y\n1,2\n", r"cannot be read as rows of numbers: it is no .npz, or damaged$"),
    ],
)
def test_an_npz_that_cannot_be_used_is_one_line(
    tmp_path: Path, targets: NDArray[np.generic] | bytes, message: str
) -> None:
    if isinstance(targets, bytes):
        (tmp_path / "rows.npz").write_bytes(targets)
    else:
        np.savez(tmp_path / "rows.npz", inputs=np.zeros((40, 3)), targets=targets)
    with pytest.raises(DataError, match=message):
        load_splits(rows_of(tmp_path, data_dir=str(tmp_path / "rows.npz")), rng_seed=0)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((40, 3)), "y": np.zeros(40)}, r"it holds x, y; needed are inputs and targets"),
        ({"inputs": np.zeros((40, 3))}, r"it holds inputs, but no targets"),
        ({f"row{i}": np.zeros(3) for i in range(40)}, r"it holds row0, [^…]*, …; needed are inputs and targets"),
        ({"inputs": np.zeros((40, 3), dtype=complex), "targets": np.arange(40) % 2}, r"inputs are complex128; turn"),
        ({"inputs": np.zeros((40, 3)), "targets": np.arange(40) * 1j}, r"targets are complex128; turn"),
        ({"inputs": np.full((40, 3), 1e300), "targets": np.arange(40) % 2}, r"inputs hold NaN or infinity"),
    ],
)
def test_an_npz_of_other_arrays_is_one_line(
    tmp_path: Path, arrays: dict[str, NDArray[np.generic]], message: str
) -> None:
    np.savez(tmp_path / "rows.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        load_splits(rows_of(tmp_path, data_dir=str(tmp_path / "rows.npz")), rng_seed=0)


def test_two_numbers_to_predict_are_too_few_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("x,y\n1,2\n3,4\n")
    with pytest.raises(DataError, match=r"split has \d rows; use more rows"):
        load_splits(rows_of(tmp_path, target_type="number"), rng_seed=0)


def test_a_constant_column_keeps_its_scale(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("\n".join(["x,y,kind", *(f"{i * 1e-9},3,{'ab'[i % 2]}" for i in range(60))]))
    splits = load_splits(rows_of(tmp_path), rng_seed=0)
    assert splits.std[1] * 255 == 1.0
    assert splits.std[0] * 255 == pytest.approx(splits.train.images[:, 0].double().std(correction=0).item())  # type: ignore[union-attr]


def test_numbers_of_an_npz_are_predicted(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", inputs=np.random.rand(40, 3), targets=np.random.rand(40, 2))
    splits = load_splits(rows_of(tmp_path, data_dir=str(tmp_path / "rows.npz"), target_type="number"), rng_seed=0)
    assert (splits.spec.inputs, splits.spec.num_outputs, splits.spec.output_names) == ((3,), 2, ())


def test_targets_that_are_too_large_for_single_precision_are_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", inputs=np.zeros((40, 3)), targets=np.full(40, 1e300))
    with pytest.raises(DataError, match="targets hold NaN or infinity"):
        load_splits(rows_of(tmp_path, data_dir=str(tmp_path / "rows.npz"), target_type="number"), rng_seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data_dir": "nowhere.csv"}, r"dataset.data_dir=nowhere.csv: cannot be read as rows of numbers: "),
        ({"data_dir": "nowhere"}, r"dataset.data_dir=nowhere: cannot be read as rows of numbers: .*No such file"),
        ({"target": "kinds"}, r"dataset.target=kinds: no such column; did you mean kind\?"),
        ({"target": "x"}, r"rows of numbers: column 'kind' has 'a' in row 1, not a number; "),
        ({"target_type": "number"}, r"the target is not a number; use dataset.target_type=class"),
    ],
)
def test_rows_that_cannot_be_used_are_one_line(tmp_path: Path, settings: dict[str, str], message: str) -> None:
    lines = [f"{i},{1000 * i},{'ab'[i % 2]}" for i in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["x,y,kind", *lines]))
    with pytest.raises(DataError, match=message):
        load_splits(rows_of(tmp_path, **settings), rng_seed=0)
