"""The pages in Chromium: hovering, zooming and hiding, with nothing loaded from anywhere."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from esper.configs.comparison import ARMS
from esper.contracts.events import SurgeryEnded, Validated
from esper.report import run_page
from esper.report.figure import Axis, Figure, Series, embed, thinned
from esper.report.jumps import jumps
from esper.report.lexicon import LEXICON, words_in
from esper.report.run_record import RunRecord, read_run
from esper.tracking import Journal
from tests.browser import dom, needs_chromium, with_script
from tests.report.test_answers import write_budgets
from tests.report.test_comparison import _ERROR, run_cli, write_arms, write_run

_POINT = """
const svg = document.querySelector('figure.plot svg'), box = svg.getBoundingClientRect();
const at = (kind, share) => svg.dispatchEvent(new PointerEvent(kind, {button: 0, bubbles: true,
  clientX: box.left + share * box.width, clientY: box.top + box.height / 2}));
const note = (name, text) => document.body.setAttribute('data-' + name, text);
const tip = () => document.querySelector('figure.plot .tip').textContent;
const ticks = () => [...svg.querySelectorAll(':scope > text')].map(t => t.textContent).join('|');
"""


@needs_chromium
def test_a_plot_tells_its_values_zooms_and_hides_what_is_clicked(tmp_path: Path) -> None:
    write_arms(tmp_path / "runs", {"grown": (0.9, 1e6), "static_flops": (0.91, 1e6)}, num_seeds=2)
    for folder in (tmp_path / "runs").iterdir():
        run_page.write(folder)
    assert run_cli(tmp_path / "runs") == 0
    page = with_script(
        tmp_path / "runs" / "comparison.html",
        _POINT
        + """
        const figure = [...document.querySelectorAll('figure.plot')].at(-1);
        const marker = svg.querySelector('.marker').getBoundingClientRect();
        svg.dispatchEvent(new PointerEvent('pointermove', {bubbles: true,
          clientX: marker.left + 4, clientY: marker.top + 8}));
        note('hover', tip());
        note('whole', ticks());
        at('pointerdown', 0.3); at('pointermove', 0.6); at('pointerup', 0.6);
        note('zoomed', ticks());
        document.querySelector('.unzoom').click();
        note('back', ticks());
        const curves = () => figure.querySelectorAll('g[stroke] path').length;
        note('before', curves());
        document.querySelector('.key button').click();
        note('after', curves());
        """,
    )
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', re.search(r"<body[^>]*>", dom(page, tmp_path / "chrome"))[0]))  # type: ignore[index]
    assert re.fullmatch(r".*rng_seed \dFLOPs spent 2 M test accuracy 9\d\.\d\d %click: its report", found["hover"])
    assert found["whole"] == found["back"] != found["zoomed"]
    assert (found["before"], found["after"]) == ("2", "1")


@needs_chromium
def test_a_curve_of_one_of_several_budgets_says_which(tmp_path: Path) -> None:
    write_budgets(tmp_path, {10: {"grown": 0.8}, 20: {"grown": 0.9}}, num_seeds=1)
    assert run_cli(tmp_path) == 0
    script = """
        const figure = [...document.querySelectorAll('figure.plot')].at(-1), last = figure.querySelector('svg');
        const box = last.getBoundingClientRect();
        const at = {clientX: box.left + box.width / 2, clientY: box.top + 50, bubbles: true};
        last.dispatchEvent(new PointerEvent('pointermove', at));
        document.body.dataset.tip = figure.querySelector('.tip').textContent;
        """
    shown = dom(with_script(tmp_path / "comparison.html", script), tmp_path / "chrome")
    tip = re.search(r'data-tip="([^"]*)"', shown)
    assert tip is not None
    assert re.search(r"grown at 10 epochs .*grown at 20 epochs ", tip[1])


@needs_chromium
@pytest.mark.parametrize("has_long_names", [False, True])
def test_nothing_of_a_comparison_leaves_the_page(tmp_path: Path, has_long_names: bool) -> None:
    if has_long_names:
        for name in ("a", "b"):
            write_run(tmp_path / name, model__target_layers=[150 * name])
        assert run_cli(tmp_path, "--baseline", f'target_layers=["{150 * "a"}"]') == 0
    else:
        write_arms(tmp_path, dict.fromkeys(ARMS, (0.1, 1e6)), num_seeds=2, info=_ERROR)
        assert run_cli(tmp_path) == 0
    page = with_script(
        tmp_path / "comparison.html",
        _POINT
        + """
        const right = box => box.getBoundingClientRect().right;
        const texts = [...document.querySelectorAll('figure.plot svg text')];
        const cut = texts.filter(text => right(text) > right(text.ownerSVGElement));
        note('plots', document.querySelectorAll('figure.plot svg').length);
        note('cut', cut.map(t => t.textContent).join('|'));
        note('beyond', document.documentElement.scrollWidth - document.documentElement.clientWidth);
        """,
    )
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', re.search(r"<body[^>]*>", dom(page, tmp_path / "chrome"))[0]))  # type: ignore[index]
    assert found == {"plots": "4", "cut": "", "beyond": "0"}


@needs_chromium
def test_the_policy_of_a_page_allows_its_own_script_and_no_other(tmp_path: Path) -> None:
    write_arms(tmp_path, {"grown": (0.9, 1e6)}, num_seeds=2)
    assert run_cli(tmp_path) == 0
    page = tmp_path / "comparison.html"
    text = page.read_text().replace("</body>", "<script>document.body.id = 'injected'</script></body>")
    page.write_text(text)
    shown = dom(page, tmp_path / "chrome")
    assert 'id="injected"' not in shown
    assert '<div class="tip" hidden=""></div>' in shown


def test_the_axis_of_a_percentage_ends_at_100() -> None:
    series = Series(name="a", colour="#000", x=[1, 2, 3], y=[0.1, 0.99, 1.0])
    drawing = embed(Figure(x=Axis(), y=Axis(unit="%"), series=[series]))
    assert re.search(r"&#34;limits&#34;:\[[^]]*,1.0\]", drawing.split("&#34;y&#34;")[1])
    assert "105%" not in drawing


def test_plots_drawn_in_several_threads_look_the_same() -> None:
    figure = Figure(x=Axis(), y=Axis(), series=[Series(name="a", colour="#000", x=[1, 2], y=[1, 2])])
    before = dict(matplotlib.rcParams)
    with ThreadPoolExecutor(8) as threads:
        drawings = list(threads.map(embed, [figure] * 24))
    assert len(set(drawings)) == 1
    assert dict(matplotlib.rcParams) == before


def test_a_long_curve_is_thinned_to_its_lowest_and_highest_points() -> None:
    values = [0.0] * 50_000
    values[31_234], values[44_321] = 7.0, float("nan")
    x, y = thinned(range(50_000), values)
    assert len(x) < 1500
    assert (x[0], x[-1]) == (0, 49_999)
    assert dict(zip(x, y, strict=True))[31_234] == 7.0


def test_the_lexicon_is_the_glossarys() -> None:
    rows = re.findall(r"^\| ([^|]+?) \| (.+?) \|$", Path("docs/glossary.md").read_text(), flags=re.MULTILINE)
    assert LEXICON.items() <= dict(rows).items()


def test_a_page_explains_the_words_that_it_uses() -> None:
    assert [word for word, _ in words_in("It germinated at a site.")] == ["site", "germinate", "kernel"]
    assert words_in("nothing of ours") == []


def write_losses(run_dir: Path, losses: list[float], *, born_after: int) -> RunRecord:
    write_run(run_dir, status="failed")
    journal = Journal(run_dir / "journal.jsonl")
    sizes = {f"num_{what}_{when}": 100 for what in ("parameters", "macs") for when in ("before", "after")}
    for epoch, loss in enumerate(losses, start=1):
        step = 100 * epoch
        journal.write(Validated(step=step, epoch=epoch, val_loss=loss, val_metrics={"accuracy": 0.5}))
        if epoch == born_after:
            what: dict[str, Any] = {"graft_id": 1, "action": "germinate", "site": "a:after", "blueprint_id": "conv3x3"}
            journal.write(SurgeryEnded(step=step, committed=True, error=None, duration_s=0.1, **what, **sizes))
    journal.close()
    return read_run(run_dir)


def test_a_jump_of_the_validation_loss_after_a_birth_is_told(tmp_path: Path) -> None:
    usual = [1.0, 0.95, 0.9, 0.85]
    (told,) = jumps(write_losses(tmp_path / "back", [*usual, 1.2, 0.8], born_after=4))
    assert told == (
        "The validation loss jumped from 0.85 to 1.2 (+41 %) after conv3x3 at a:after germinated (step 400); "
        "it was back at that by epoch 6."
    )
    (told,) = jumps(write_losses(tmp_path / "not back", [*usual, 1.2, 0.9], born_after=4))
    assert told.endswith("it has not come back to that since.")
    for number, losses in enumerate(([*usual, 0.86, 0.8], [1.0, 0.5, 1.0, 0.5, 1.0], usual)):
        assert list(jumps(write_losses(tmp_path / str(number), losses, born_after=4))) == []
