from __future__ import annotations

import asyncio
import json
import re
import webbrowser
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from esper.cli import main
from esper.configs import ModelConfig
from esper.errors import RunError
from esper.report import run_page, run_plots
from esper.report.run_record import read_run
from esper.tolaria import TolariaTrainer
from esper.tracking.history import GrownModule
from tests.browser import dom, needs_chromium, with_script
from tests.conftest import tiny_config

_SCRIPT = (Path(run_page.__file__).parent / "plot.js").read_text()


def train(run_dir: Path, **changes: object) -> None:
    trainer = TolariaTrainer(tiny_config(**changes), run_dir=run_dir)

    async def go() -> None:
        await trainer.initialize()
        await trainer.train()
        await trainer.shutdown()

    asyncio.run(go())


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "tiny" / "run"
    train(folder, description="<script>alert(1)</script>")
    run_page.write(folder)
    return folder


def html(run_dir: Path) -> str:
    return (run_dir / "report.html").read_text()


def test_the_page_needs_nothing_beside_it(run_dir: Path) -> None:
    text = html(run_dir).replace(_SCRIPT, "")
    outside = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!#)([^"')\s>]+)""", text)
    assert [address for address in outside if not address.startswith("data:")] == []


def test_the_page_tells_the_result_and_the_fate_of_every_module(run_dir: Path) -> None:
    text = html(run_dir)
    result = json.loads((run_dir / "status.json").read_text())["result"]
    assert f"{100 * result['test_accuracy']:.1f} %" in text
    assert text.count("basic_block") >= 3  # table, drawing, decision
    assert "layer1.0:beside" in text
    for heading in ("Curves", "What grew", "Architecture", "Verdicts", "Decisions", "What it cost", "Configuration"):
        assert f">{heading}<" in text


def test_a_run_that_scores_and_judges_nothing_shows_neither_health_nor_gains(tmp_path: Path) -> None:
    train(tmp_path, morphogenetic__policy="schedule", morphogenetic__always_score=False, morphogenetic__judged=False)
    run_page.write(tmp_path)
    text = html(tmp_path)
    for heading in ("What grew", "Architecture", "Decisions", "What it cost"):
        assert f">{heading}<" in text
    for absent in ("Health of the sites", "lower bound", "Verdicts"):
        assert absent not in text


def test_the_page_shows_pictures_classified_correctly_and_not(run_dir: Path) -> None:
    pictures = json.loads((run_dir / "samples.json").read_text())
    assert html(run_dir).count('<img src="data:image/png;base64,') == len(pictures) > 0


def test_what_a_user_wrote_is_escaped(run_dir: Path) -> None:
    assert html(run_dir).count("<script>") == 1  # ours
    assert "&lt;script&gt;alert(1)" in html(run_dir)


def test_every_plot_and_drawing_is_sound_svg_and_every_tag_is_closed(run_dir: Path) -> None:
    drawings = re.findall(r"<svg.*?</svg>", html(run_dir), flags=re.DOTALL)
    # loss, accuracy, learning rate, gradient norm, throughput, memory, two architectures, verdicts, health
    assert len(drawings) == 10
    for drawing in drawings:
        ET.fromstring(drawing)

    class Balance(HTMLParser):
        open_tags: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("br", "meta", "img", "path", "rect", "circle", "line", "use", "image"):
                self.open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            if tag in ("path", "rect", "circle", "line", "use", "image"):
                return
            assert self.open_tags.pop() == tag

    parser = Balance()
    parser.feed(html(run_dir))
    assert parser.open_tags == []


def test_a_run_without_growth_has_a_page_without_growth(tmp_path: Path) -> None:
    train(tmp_path / "tiny" / "off", morphogenetic__enable_tamiyo=False)
    text = run_page.write(tmp_path / "tiny" / "off").read_text()
    assert "Nothing grew" in text
    assert "Architecture" not in text


def test_a_run_that_is_still_going_on_has_a_page_too(run_dir: Path, tmp_path: Path) -> None:
    lines = (run_dir / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]) + b'{"kind": "st')
    assert "is still running" in run_page.write(tmp_path).read_text()


def test_a_folder_without_a_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run folder: it has no journal.jsonl"):
        run_page.write(tmp_path)


def test_a_run_that_failed_before_its_first_step_has_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").touch()
    assert "has not started training" in run_page.write(tmp_path).read_text()


def test_a_decision_stands_beside_what_was_seen_and_what_came_of_it(run_dir: Path) -> None:
    rows = re.findall(r"<tr><td[^>]* class=\"n\">\d+</td>.*?</tr>", html(run_dir), flags=re.DOTALL)
    assert len(rows) == html(run_dir).count("germinate basic_block:") == 1
    assert re.search(r"layer\S+ <b>\d\.\d\d</b>", rows[0])
    assert re.search(r'class="tag (kept|culled)">(kept|culled)</span>, gain -?\d\.\d{4}', rows[0])


def test_the_costs_add_up_to_everything_the_run_spent(run_dir: Path) -> None:
    record = read_run(run_dir)
    assert record.result is not None
    costs = dict(run_page._costs(record))
    assert sum(costs.values()) == record.result["train_macs"] + record.result["growth_macs"]
    assert min(costs.values()) >= 0


def test_a_run_that_grew_dozens_of_modules_has_plots_of_a_bearable_height() -> None:
    verdict = {"gain": 0.01, "lower_bound": -0.01, "threshold": 0.001}
    modules = [
        GrownModule(
            graft_id=n, site="a:after", blueprint_id="x", step=n, added_parameters=1, added_macs=1, judgement=verdict
        )
        for n in range(1, 41)
    ]
    height = re.search(r'height="([\d.]+)pt"', run_plots.forest(modules))
    assert height is not None
    assert float(height[1]) < 600


@needs_chromium
def test_a_page_with_long_names_of_sites_is_as_wide_as_the_screen_and_cuts_no_text(tmp_path: Path) -> None:
    vit = ModelConfig(
        name="vit", patch_size=4, width=12, depth=2, heads=3, mlp_ratio=2.0, target_layers=["encoder.layers"]
    )
    train(tmp_path / "run", model=vit, morphogenetic__blueprint="mlp")
    page = with_script(
        run_page.write(tmp_path / "run"),
        """
        const box = node => node.getBoundingClientRect();
        const left = node => box(node).left, right = node => box(node).right;
        const texts = [...document.querySelectorAll('.drawing svg text, svg.heat text')];
        const cut = texts.filter(t => left(t) < left(t.ownerSVGElement) || right(t) > right(t.ownerSVGElement));
        document.body.dataset.texts = texts.length;
        document.body.dataset.cut = cut.map(t => t.textContent).join('|');
        document.body.dataset.beyond = document.documentElement.scrollWidth - document.documentElement.clientWidth;
        """,
    )
    body = re.search(r"<body[^>]*>", dom(page, tmp_path / "chrome"))
    assert body is not None
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', body[0]))
    assert int(found["texts"]) > 10
    assert (found["cut"], found["beyond"]) == ("", "0")


def test_the_page_is_opened_on_request(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o700)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    monkeypatch.setattr(webbrowser, "_tryorder", None)  # it reads BROWSER once
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run_dir), "--open"])
    assert ended.value.code == 0
    assert (tmp_path / "opened").read_text().strip() == (run_dir / "report.html").as_uri()
