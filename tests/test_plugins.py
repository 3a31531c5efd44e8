from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import esper
from esper import plugins
from esper.configs import TolariaConfig, load_config
from esper.configs.check import check
from esper.configs.compose import compose
from esper.configs.load import from_hydra, to_yaml
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
