"""Where the labels of arms break: in the terminal, in pages, and in the buttons that a script makes of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console

from esper.report.comparison import printed, write
from esper.report.labels import breakable, wrapped
from tests.browser import dom, needs_chromium
from tests.report.test_comparison import compared, write_run


@pytest.mark.parametrize(
    ("label", "width", "lines"),
    [
        ("morphogenetic=default", 20, ["morphogenetic=", "default"]),
        ("morphogenetic=default", 21, ["morphogenetic=default"]),
        ("morphogenetic.enable_tamiyo=true", 23, ["morphogenetic.enable_", "tamiyo=true"]),
        ("depths=[10,20], learning_rate=-0.125", 12, ["depths=[10,", "20],", "learning_", "rate=-0.125"]),
        ("host, trained longer", 14, ["host, trained", "longer"]),
        ("grown", 3, ["gro", "wn"]),
        ("a=incomprehensible", 8, ["a=", "incompre", "hensible"]),
        ("", 5, [""]),
    ],
)
def test_a_line_ends_at_a_sign_and_inside_a_word_only_if_the_word_is_too_long(
    label: str, width: int, lines: list[str]
) -> None:
    assert wrapped(label, width) == lines


def test_a_label_in_a_page_may_break_after_its_signs_and_is_escaped() -> None:
    assert breakable("a_b=<c> 0.5") == "a_<wbr>b=<wbr>&lt;c&gt; <wbr>0.5"


def two_arms(folder: Path) -> Path:
    for is_on in (True, False):
        write_run(folder / str(is_on), morphogenetic__enable_tamiyo=is_on)
    return folder


@pytest.mark.parametrize("columns", [70, 80, 90])
def test_the_table_in_the_terminal_breaks_no_word_that_fits(columns: int, tmp_path: Path) -> None:
    console = Console(width=columns, record=True)
    for part in printed(compared(two_arms(tmp_path))):
        console.print(part)
    table = console.export_text().partition("───\n")[2].partition("\n\n")[0]
    arms = "\n".join(re.split(r"\s", line, maxsplit=1)[0] for line in table.splitlines())
    assert set("".join(arms.split("\n")).replace("true", "false").split("morphogenetic.")) == {
        "",
        "enable_tamiyo=false",
    }
    assert all(line.endswith(("_", ".", "=", "true", "false")) for line in arms.split())


def test_a_lone_verdict_is_printed_once(tmp_path: Path) -> None:
    report = compared(two_arms(tmp_path))
    (claim,) = report.claims
    console = Console(width=500, record=True)
    for part in printed(report):
        console.print(part)
    assert console.export_text().count(claim.sentence) == 1


@needs_chromium
def test_buttons_of_a_comparison_break_at_signs(tmp_path: Path) -> None:
    write(compared(two_arms(tmp_path)), tmp_path / "page.html")
    page = dom(tmp_path / "page.html", tmp_path / "profile")
    assert re.search(r"<button[^>]*>.*?<span>morphogenetic\.<wbr>enable_<wbr>tamiyo=<wbr>true</span></button>", page)
