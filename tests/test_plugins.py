from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import esper
import esper.launch.run
from esper import plugins
from esper.configs import TolariaConfig, load_config
from esper.configs.check import check
from esper.configs.compose import compose
from esper.configs.load import from_hydra, to_yaml
from esper.data import DataSplits, load_splits
from esper.errors import ConfigError


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(plugins, "_registered", {})
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(plugins, "_installed", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_module_in_the_working_directory_registers_a_policy(tmp_path: Path) -> None:
    write(tmp_path / "mine.py", "import esper\n@esper.policy('patient')\ndef build(config, rng_seed): ...\n")
    config = from_hydra(compose(["plugins=[mine]", "morphogenetic=heuristic", "morphogenetic.policy=patient"]))
    assert config.plugins == ["mine"]
    assert plugins.find("policy", "patient") is not None


def test_an_unknown_name_is_refused_with_those_of_plugins(tmp_path: Path) -> None:
    write(tmp_path / "mine.py", "import esper\n@esper.policy('patient')\ndef build(config, rng_seed): ...\n")
    with pytest.raises(ConfigError, match=r"policy=patent: allowed are never, .*patient; did you mean patient"):
        from_hydra(compose(["plugins=[mine]", "morphogenetic.policy=patent"]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, r"plugins: 'missing': there is no such module in .* or installed"),
        ("needy", "import not_there", r"plugins: 'needy': needs not_there, which is not installed"),
        ("broken", "\n1 / 0", r"plugins: 'broken': cannot be imported: ZeroDivisionError: .*broken.py:2\)"),
        ("wrong", "import esper\nesper.model('a b')(int)", r"plugins: 'wrong': @esper.model\('a b'\): allowed is"),
        ("mine/models.py", None, r"plugins: 'mine/models.py': allowed is the name of a module"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        write(tmp_path / f"{name}.py", content)
    with pytest.raises(ConfigError, match=message) as raised:
        check(TolariaConfig(plugins=[name]))
    assert "\n" not in str(raised.value)


def test_one_name_cannot_mean_two_things(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / f"{name}.py", "import esper\n@esper.model('net')\ndef build(spec): ...\n")
    with pytest.raises(ConfigError, match=r'@esper.model\("net"\) in two: one has registered this name; rename one'):
        plugins.load(["one", "two"])


def test_an_installed_package_registers_by_its_entry_point(tmp_path: Path) -> None:
    write(tmp_path / "site" / "theirs.py", "import esper\n@esper.model('theirs')\ndef build(spec): ...\n")
    write(tmp_path / "site" / "theirs-2.1.dist-info" / "METADATA", "Name: theirs\nVersion: 2.1\n")
    write(tmp_path / "site" / "theirs-2.1.dist-info" / "entry_points.txt", "[esper.plugins]\ntheirs = theirs\n")
    write(tmp_path / "site" / "theirs-2.1.dist-info" / "top_level.txt", "theirs\n")
    sys.path.append(str(tmp_path / "site"))
    assert plugins.loaded([]) == []
    assert plugins.find("model", "theirs") is not None
    (found,) = plugins.loaded([])
    assert (found.module, found.version) == ("theirs", "2.1")


def test_the_digest_is_that_of_all_files_of_a_package(tmp_path: Path) -> None:
    write(tmp_path / "mine" / "__init__.py", "")
    layers = write(tmp_path / "mine" / "layers.py", "width = 1")
    write(tmp_path / "mine" / "models.py", "")
    plugins.load(["mine.models"])
    (before,) = plugins.loaded(["mine.models"])
    layers.write_text("width = 2")
    plugins._loaded.clear()
    plugins.load(["mine.models"])
    (after,) = plugins.loaded(["mine.models"])
    assert before.digest != after.digest


def test_a_file_of_settings_imports_code_only_where_it_is_trusted(tmp_path: Path) -> None:
    write(tmp_path / "mine.py", "from pathlib import Path\nPath('canary').touch()")
    write(tmp_path / "config.yaml", to_yaml(TolariaConfig(plugins=["mine"])))
    with pytest.raises(ConfigError, match=r"config.yaml: plugins=\['mine'\]: names code"):
        load_config(tmp_path / "config.yaml")
    assert not (tmp_path / "canary").exists()
    assert load_config(tmp_path / "config.yaml", may_import=True).plugins == ["mine"]
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "preset",
    ["# @package _global_\nplugins: [mine]", "# @package _global_\nhydra: {sweeper: {params: {+plugins: '[mine]'}}}"],
)
def test_a_preset_cannot_name_plugins(tmp_path: Path, preset: str) -> None:
    write(tmp_path / "mine.py", "from pathlib import Path\nPath('canary').touch()")
    write(tmp_path / "presets" / "experiment" / "mine.yaml", preset)
    with pytest.raises(ConfigError, match=r"mine.yaml: \+?plugins: names code to import; give it on the command line"):
        compose([f"hydra.searchpath=[{tmp_path / 'presets'}]", "experiment=mine"])
    assert not (tmp_path / "canary").exists()


def test_the_decorators_need_no_torch() -> None:
    code = "import esper, sys; esper.model('a')(int); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert set(esper.__all__) >= {"model", "dataset", "policy"}


NET = """
import esper
from torch import nn

@esper.model("tiny")
class Tiny(nn.Module):
    def __init__(self, spec, width=8):
        super().__init__()
        self.stem = nn.Conv2d(spec.inputs[0], width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(2)))
        self.head = nn.Linear(width, spec.num_outputs)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return x + self.norm(self.conv(x)).relu()
"""
QUICK = ["model=plugin", "dataset=digits", "morphogenetic=stack", "tracking=none", "device=cpu",
         "dataset.num_examples=400", "optimization.max_epochs=4"]  # fmt: skip


def train(tmp_path: Path, *overrides: str) -> esper.launch.run.Outcome:
    plugins._loaded.clear()  # as in another process
    sys.modules.pop("mine", None)
    plugins._registered.clear()
    return esper.fit("plugins=[mine]", "model.name=tiny", *QUICK, *overrides, run_dir=tmp_path / "run")


@pytest.mark.long
def test_a_network_of_a_plugin_grows_and_a_changed_file_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "mine.py", NET)
    outcome = train(tmp_path, "model.options.width=6")
    assert json.loads((outcome.run_dir / "recipe.json").read_text())["grafts"][0]["sources"] == ["blocks.0", "blocks.1"]
    (recorded,) = json.loads((outcome.run_dir / "plugins.json").read_text())["plugins"]
    assert (recorded["module"], recorded["file"]) == ("mine", str(file))
    assert "has changed" not in capsys.readouterr().err
    file.write_text(f"{NET}\n# another comment\n")
    assert train(tmp_path, "model.options.width=6").result == outcome.result
    assert "plugin mine has changed since the run began" in capsys.readouterr().out


DATA = """
import esper, torch

@esper.dataset("squares")
def squares(size, *, num=120):
    if size > 9:
        raise ValueError("too large")
    labels = torch.arange(num) % 2
    return torch.rand(num, 1, size, size) + labels[:, None, None, None], labels

esper.dataset("tensors")((torch.rand(120, 4), torch.arange(120) % 2))
"""


def data_of(tmp_path: Path, *overrides: str) -> DataSplits:
    write(tmp_path / "mine.py", DATA)
    config = from_hydra(
        compose(["plugins=[mine]", "dataset=plugin", "dataset.source=squares", "dataset.batch_size=8", *overrides])
    )
    return load_splits(config.dataset, rng_seed=0)


def test_the_data_of_a_plugin_have_options(tmp_path: Path) -> None:
    assert data_of(tmp_path, "dataset.options={size: 7}").spec.inputs == (1, 7, 7)
    assert len(data_of(tmp_path, "dataset.options.size=6", "dataset.options.num=400").test) == 40


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.options.num=80", r"dataset.options={'num': 80}: squares missing .*'size'; its options: size, num"),
        ("dataset.options={size: 6, sise: 3}", r"squares got an unexpected .*'sise'; its options: size, num"),
        ("dataset.options.size=10", r"dataset.source=squares: cannot be built: ValueError: too large \(.*mine.py:7\)"),
    ],
)
def test_data_that_cannot_be_made_are_one_line(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data_of(tmp_path, override)


def test_data_without_a_function_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset.source=tensors: is a tuple; register a function or class"):
        data_of(tmp_path, "dataset.source=tensors")


def test_a_module_with_weights_is_refused_before_a_comparison_begins(tmp_path: Path) -> None:
    write(tmp_path / "mine.py", NET + "\nesper.model('given')(Block(4))\nesper.model('made')(Block)\n")
    arm = ["plugins=[mine]", "model=plugin", "arm=final_flops"]
    with pytest.raises(ConfigError, match=r"policy=replay: trains from scratch, but given is a module"):
        from_hydra(compose([*arm, "model.name=given"]))
    from_hydra(compose([*arm, "model.name=made"]))
    from_hydra(compose(["plugins=[mine]", "model=plugin", "arm=grown", "model.name=given"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.options.depth=2"],
            r"model.options={'depth': 2}: tiny got an unexpected .*'depth'; its options: width",
        ),
        (["model.name=tinny"], r"model.name=tinny: allowed are tiny; did you mean tiny\?"),
        (["model.name=''"], r"model=plugin: which network\? Add model.name=NAME; there are: tiny"),
        (["dataset=synthetic", "model.options.width=-1"], r"model.name=tiny: cannot be built: "),
    ],
)
def test_a_network_that_does_not_suit_is_one_line(tmp_path: Path, overrides: list[str], message: str) -> None:
    write(tmp_path / "mine.py", NET)
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, *overrides)


OTHERS = """
import esper


@esper.task("failing")
@esper.policy("failing")
def failing(*_):
    raise KeyError("lost")


@esper.task("number")
@esper.policy("number")
def number(*_):
    return 17


@esper.blueprint("function")
def function(in_shape, out_shape):
    return None
"""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.name=failing"], r"task.name=failing: cannot be built: KeyError: 'lost' .*mine.py:\d+\)"),
        (["task.name=number"], r"task.name=number: gave a int; it must make an esper.tasks.Task"),
        (["morphogenetic.policy=failing"], r"policy=failing: cannot be built: KeyError: 'lost' .*mine.py:\d+\)"),
        (["morphogenetic.policy=number"], r"policy=number: gave a int; it must make an esper.tamiyo.policies.Policy"),
        (["morphogenetic.blueprint=function"], r"blueprint 'function': is a function; register an esper.urza.Bluepri"),
    ],
)
def test_what_is_no_task_policy_or_blueprint_is_one_line(tmp_path: Path, overrides: list[str], message: str) -> None:
    write(tmp_path / "mine.py", OTHERS)
    settings = ["plugins=[mine]", "model=resnet_small", "dataset=digits", "morphogenetic=schedule", "tracking=none"]
    with pytest.raises(ConfigError, match=message):
        esper.fit(*settings, *overrides, run_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "journal.jsonl").exists()
