"""The pages in a real browser: what the script does, print, two themes, a phone, accessibility."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from made_up import SUITES, make_frames, rows
from playwright.sync_api import Browser, Page, sync_playwright

from resflow_bench.analysis.margins import Margins
from resflow_bench.gate.comparison import compare
from resflow_bench.report.comparison import write_comparison
from resflow_bench.report.page import write_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the path")

RUN = {"run": "20260101-quick", "preset": "quick", "arguments": ["run", "--preset", "quick"]}
PHONE, TABLET, LAPTOP = 390, 768, 1440


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as run:
        browser = run.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of all suites, one of a single failed cell, and one of a comparison."""
    out, frames = tmp_path_factory.mktemp("pages"), make_frames()
    failed = frames["inverse"].query("status == 'failed'")
    changed = dict(frames)
    bias = changed["bias"]
    up = 1.0 * (bias["metric"] == "bias_expected") * (bias["cell"] == "bias1")
    changed["bias"] = bias.assign(**{c: bias[c] + up for c in ("value", "ci_low", "ci_high")})
    comparison = compare([("a", frames)], [("a", changed)], Margins.of_suites(SUITES))
    return {
        "report": write_report(frames, [RUN], out / "report", SUITES),
        "long": write_report({"later": many_rows()}, [RUN], out / "long", SUITES),
        "failed": write_report({"inverse": failed}, [], out / "failed", SUITES),
        "comparison": write_comparison(comparison, ("one", "two"), out / "comparison"),
    }


def many_rows(n: int = 500) -> pd.DataFrame:
    """A table of `n` lines and twenty metrics with intervals."""
    metrics = {f"metric_{k}": (1000.0 + k, 1.0) for k in range(20)}
    return rows("later", iter([({"model": "init", "step": 1000 + k}, metrics) for k in range(n)]))


@pytest.fixture
def opened(browser: Browser, pages: dict[str, Path]) -> Iterator[Any]:
    """Opens a page of `pages`; at the end it must have said nothing and asked for nothing."""
    contexts, heard = [], []

    def open_(name: str, width: int = LAPTOP, at: str = "", **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        address = pages[name].as_uri()
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(address) else heard.append(r.url))
        page.goto(address + at)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert heard == []


def column(page: Page, selector: str, place: int) -> list[float]:
    """The numbers of a column, from top to bottom."""
    values = page.eval_on_selector_all(
        f"{selector} tbody tr", f"rows => rows.map(row => row.cells[{place}].dataset.v)"
    )
    return [float(value) for value in values if value is not None]


def test_a_click_sorts_and_another_reverses(opened) -> None:
    page = opened("report", at="#bias")
    table = "section:has(#bias) table.sortable"
    page.locator("section:has(#bias) > details").evaluate("d => (d.open = true)")
    heads = page.locator(f"{table} th")
    place = heads.count() - 1
    before = column(page, table, place)
    heads.nth(place).get_by_role("button").click()
    assert column(page, table, place) == sorted(before)
    assert before != sorted(before), "the sort must have work to do"
    assert heads.nth(place).get_attribute("aria-sort") == "ascending"
    heads.nth(place).get_by_role("button").click()
    assert column(page, table, place) == sorted(before, reverse=True)


def test_a_filter_keeps_the_rows_with_every_word(opened) -> None:
    page = opened("report")
    page.locator("section:has(#bias) > details").evaluate("d => (d.open = true)")
    rows = page.locator("section:has(#bias) table.sortable tbody tr")
    n = rows.count()
    field = page.locator("section:has(#bias) input[type=search]")
    field.fill("TRAINED fixed")
    shown = rows.locator("visible=true")
    assert 0 < shown.count() < n
    assert all("trained" in text and "fixed" in text for text in shown.all_text_contents())
    assert page.locator("section:has(#bias) output").text_content().startswith(f"{shown.count()} ")
    field.fill("no such word")
    assert shown.count() == 0
    field.fill("")
    assert shown.count() == n


def test_the_first_filter_of_500_rows(opened) -> None:
    """A number is found as it is shown and as it is typed; the time, to the next frame, is printed.

    Commas at thousands do not disturb the order either.
    """
    page = opened("long")
    took = page.evaluate(
        """async () => {
            const field = document.querySelector("section input[type=search]");
            const begun = performance.now();
            field.value = "1400";
            field.dispatchEvent(new Event("input"));
            await new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)));
            return performance.now() - begun;
        }"""
    )
    print(f"first filter of 500 rows: {took:.0f} ms")
    rows = page.locator("section table.sortable tbody tr")
    assert rows.locator("visible=true").count() == 1
    assert "1,400" in rows.locator("visible=true").text_content()
    page.locator("section input[type=search]").fill("1,45")
    assert rows.locator("visible=true").count() == sum("145" in str(1000 + k) for k in range(500))
    page.locator("section input[type=search]").fill("")
    head = page.locator("section table.sortable th", has_text="step")
    place = head.evaluate("head => head.cellIndex")
    for reverse in (False, True):
        head.get_by_role("button").click()
        steps = rows.locator(f"td:nth-child({place + 1})").all_text_contents()
        assert steps == sorted(steps, key=lambda s: int(s.replace(",", "")), reverse=reverse)
    assert len(set(steps)) == 500


def test_a_column_is_hidden_and_shown(opened) -> None:
    page = opened("report")
    page.locator("section:has(#bias) > details").evaluate("d => (d.open = true)")
    head = page.locator("section:has(#bias) table.sortable th").first
    page.locator("section:has(#bias) summary", has_text="columns").click()
    box = page.locator("section:has(#bias) .tools details input").first
    box.uncheck()
    assert not head.is_visible()
    box.check()
    assert head.is_visible()


def test_only_what_is_violated_is_shown(opened) -> None:
    """The made-up rows violate one statement, in the suite `inverse`."""
    page = opened("report")
    rows = page.locator("section table.rows tbody tr").locator("visible=true")
    assert "disputed" in page.locator("nav label").text_content()
    page.get_by_label("only violated").check()
    violated = page.locator("section table.rows tr[data-violated]").count()
    assert rows.count() == violated >= 1
    page.get_by_label("only violated").uncheck()
    assert page.locator("figure").first.is_visible()


def test_a_link_to_something_folded_opens_it(opened) -> None:
    page = opened("report", at="#inverse")
    link = page.locator("#violated ~ .scroll a").first
    target = link.get_attribute("href")
    row = page.locator(f"[id='{target[1:]}']")
    assert not row.is_visible()
    link.click()
    row.wait_for(state="visible")
    again = opened("report", at=target)
    again.locator(f"[id='{target[1:]}']").wait_for(state="visible")


def test_the_section_in_sight_is_marked_in_the_contents(opened) -> None:
    page = opened("report", at="#variance", reduced_motion="reduce")
    page.wait_for_function("document.querySelector('nav [aria-current]')?.hash === '#variance'")
    assert page.locator("nav").first.is_visible()


@pytest.mark.parametrize("width", [PHONE, TABLET, LAPTOP])
@pytest.mark.parametrize("name", ["report", "failed", "comparison"])
def test_no_width_makes_the_page_scroll_sideways(name, width, opened) -> None:
    page = opened(name, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_small_phone_cuts_no_statement_and_keeps_each_number_with_its_word(opened) -> None:
    page = opened("report", 320)
    cut = page.eval_on_selector_all(
        ".scroll:has(.verdicts, .overview)",
        "all => all.filter(one => one.scrollWidth > one.clientWidth).map(one => one.ariaLabel)",
    )
    assert cut == []
    counts = page.eval_on_selector_all(
        ".overview td.n:has(small) [data-word]",
        "all => all.map(one => one.textContent + getComputedStyle(one, '::after').content)",
    )
    assert counts
    assert all(re.fullmatch(r'\d+" cells"', count) for count in counts), counts


def test_dark_is_dark(opened) -> None:
    colors = [
        opened("report", color_scheme=scheme).evaluate(
            "getComputedStyle(document.body).backgroundColor"
        )
        for scheme in ("light", "dark")
    ]
    assert colors == ["rgb(255, 255, 255)", "rgb(20, 23, 28)"]


def test_figures_keep_their_colours_under_the_policy(opened) -> None:
    """Their lines are drawn in a colour, and their text in that of the theme."""
    page = opened("report", color_scheme="dark")
    strokes = page.eval_on_selector_all(
        "figure .wide path", "all => [...new Set(all.map(p => getComputedStyle(p).stroke))]"
    )
    assert len([stroke for stroke in strokes if stroke.startswith("rgb")]) > 5
    fills = page.eval_on_selector_all(
        "figure .wide text", "all => [...new Set(all.map(t => getComputedStyle(t).fill))]"
    )
    assert "rgb(228, 231, 235)" in fills


def test_without_a_script_everything_is_there(opened) -> None:
    page = opened("report", java_script_enabled=False)
    assert page.locator("input").count() == 0
    assert page.locator("table.sortable").count() > len(SUITES)
    page.locator("section:has(#bias) > details > summary").click()
    assert page.locator("section:has(#bias) table.sortable").is_visible()


def test_print_has_what_is_folded(opened, tmp_path: Path) -> None:
    page = opened("report")
    folded = page.locator("section:has(#bias) table.sortable")
    assert not folded.is_visible()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert folded.is_visible()
    assert not page.locator("nav").first.is_visible()
    assert not page.locator(".tools").first.is_visible()
    head = folded.locator("thead")
    assert head.evaluate("h => getComputedStyle(h).display") == "table-header-group"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    pdf = page.pdf()
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 100_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, LAPTOP])
@pytest.mark.parametrize("name", ["report", "failed", "comparison"])
def test_axe_finds_nothing(name, width, scheme, opened) -> None:
    page = opened(name, width, color_scheme=scheme, bypass_csp=True)
    found = Axe().run(page).response["violations"]
    assert not found, json.dumps(found, indent=1)[:3000]
