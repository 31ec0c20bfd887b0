"""The page in a real browser: sorting, filtering, phone, print, dark mode, and what it must not do."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from mnist_dist.benchmarks.report.write import write_report
from tests.benchmarks.factory import make_study, train, whole_study

pytestmark = pytest.mark.slow

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"' </script> javascript:alert(1)"
DESKTOP, PHONE = (1280, 900), (390, 844)


def program(*names: str) -> str:
    for name in names:
        if found := shutil.which(name):
            return found
    if os.environ.get("CI"):
        pytest.fail(f"{names[0]} is missing; .ci/run installs it")
    pytest.skip(f"{names[0]} is missing; install it with `apt-get install chromium chromium-driver`")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium", "chromium-browser", "google-chrome")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(program("chromedriver")))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(tmp_path_factory.mktemp("study"), whole_study(2)).html.as_uri()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    settings = {"runtime.precision": "float32", "data.path": HOSTILE, HOSTILE: 1}
    cases = [train("single", 1, settings=settings), train("single", 1), train("horovod", 2, settings=settings)]
    records = [
        record.model_copy(update={"reason": HOSTILE, "output_tail": (HOSTILE,)}) if record.reason else record
        for record in make_study(cases, 3, study=HOSTILE, suite=HOSTILE, failing=[cases[-1]], job_id=HOSTILE)
    ]
    return write_report(tmp_path_factory.mktemp("hostile"), records, [HOSTILE]).html.as_uri()


def open_page(browser: webdriver.Chrome, address: str, size: tuple[int, int] = DESKTOP, **media: str) -> None:
    """Opens the page anew, in a window of this size, as `media`: `media` screen or print, `scheme` light or dark."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": media.get("scheme", "light")}]
    emulated = {"media": media.get("media", "screen"), "features": features}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(address)


def head(browser: webdriver.Chrome, name: str, unit: str) -> WebElement:
    for each in browser.find_elements(By.CSS_SELECTOR, "#cases thead tr:nth-child(2) th"):
        if each.text.split("\n")[0].startswith(name) and each.text.endswith(unit):
            return each
    raise AssertionError(f"no column {name}, {unit}")


def column(browser: webdriver.Chrome, heading: WebElement) -> list[float]:
    """The values of a column from top to bottom; nan where there is none."""
    script = """return [...document.querySelectorAll('#cases tbody tr')].map(
        row => row.cells[arguments[0].cellIndex].dataset.order)"""
    return [float(value) if value else math.nan for value in browser.execute_script(script, heading)]


def shown(browser: webdriver.Chrome) -> list[str]:
    return [row.text for row in browser.find_elements(By.CSS_SELECTOR, "#cases tbody tr") if row.is_displayed()]


def assert_sorted(values: list[float], *, descending: bool) -> None:
    known = [value for value in values if not math.isnan(value)]
    assert 1 < len(known) < len(values), "needs rows with and without a value"
    assert known == sorted(known, reverse=descending)
    assert all(math.isnan(value) for value in values[len(known) :]), "what is missing stands last"


def test_a_click_sorts_by_number(browser: webdriver.Chrome, study: str) -> None:
    open_page(browser, study)
    heading = head(browser, "images/s", "total")
    before = column(browser, heading)
    assert heading.get_attribute("aria-sort") == "none"
    heading.find_element(By.TAG_NAME, "button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert_sorted(column(browser, heading), descending=False)
    assert column(browser, heading) != before
    heading.find_element(By.TAG_NAME, "button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert_sorted(column(browser, heading), descending=True)


@pytest.mark.parametrize("key", [Keys.ENTER, Keys.SPACE])
def test_the_keyboard_sorts(browser: webdriver.Chrome, study: str, key: str) -> None:
    open_page(browser, study)
    browser.execute_script("document.getElementById('filter').focus()")
    throughput = head(browser, "images/s", "per device")
    for _ in range(30):  # By the tabulator alone.
        browser.switch_to.active_element.send_keys(Keys.TAB)
        if browser.switch_to.active_element == throughput.find_element(By.TAG_NAME, "button"):
            break
    browser.switch_to.active_element.send_keys(key)
    assert_sorted(column(browser, throughput), descending=False)
    other = head(browser, "weak", "% of ideal").find_element(By.TAG_NAME, "button")
    other.send_keys(key)
    assert throughput.get_attribute("aria-sort") == "none"


def test_text_sorts_by_its_letters(browser: webdriver.Chrome, study: str) -> None:
    open_page(browser, study)
    head(browser, "strategy", "").find_element(By.TAG_NAME, "button").click()
    names = [row.split()[0] for row in shown(browser)]
    assert names == sorted(names) and names[0] == "horovod"


def test_words_filter(browser: webdriver.Chrome, study: str) -> None:
    open_page(browser, study)
    everything = shown(browser)
    words = browser.find_element(By.ID, "filter")
    words.send_keys("HORO 4")
    left = shown(browser)
    assert 0 < len(left) < len(everything)
    assert all(row.startswith("horovod 4 × 2 cores") for row in left)  # noqa: RUF001
    assert browser.find_element(By.ID, "count").text == f"{len(left)} of {len(everything)} cases"
    words.send_keys(" nothing")
    assert shown(browser) == []
    words.clear()
    words.send_keys("unstable")
    assert 0 < len(shown(browser)) < len(everything)
    assert all("unstable" in row for row in shown(browser))
    words.send_keys(Keys.ENTER)  # Must not load another page.
    words.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.BACKSPACE)
    assert shown(browser) == everything


def test_strategies_filter(browser: webdriver.Chrome, study: str) -> None:
    open_page(browser, study)
    boxes = browser.find_elements(By.NAME, "strategy")
    assert [box.get_attribute("value") for box in boxes] == ["single", "mirrored", "multiworker", "horovod"]
    boxes[1].click()
    boxes[2].click()
    assert {row.split()[0] for row in shown(browser)} == {"single", "horovod"}
    head(browser, "images/s", "total").find_element(By.TAG_NAME, "button").click()
    assert {row.split()[0] for row in shown(browser)} == {"single", "horovod"}


def test_the_page_is_quiet_and_asks_the_network_for_nothing(browser: webdriver.Chrome, study: str) -> None:
    open_page(browser, study)
    assert browser.get_log("browser") == []
    resources = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in resources if not name.startswith("data:")] == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    addresses = {request["request"]["url"].partition(":")[0] for request in requests}
    assert addresses <= {"file", "data"} and study in {request["request"]["url"] for request in requests}


def test_the_policy_forbids_foreign_scripts_and_addresses(browser: webdriver.Chrome, study: str) -> None:
    open_page(browser, study)
    browser.execute_async_script("""
        const done = arguments[0];
        window.blocked = [];
        document.addEventListener('securitypolicyviolation', event => window.blocked.push(event.effectiveDirective));
        const script = document.createElement('script');
        script.textContent = 'window.ran = true';
        const image = document.createElement('img');
        image.src = 'https://example.invalid/x.png';
        document.body.append(script, image);
        setTimeout(done, 300);
    """)
    assert browser.execute_script("return window.ran") is None
    assert sorted(browser.execute_script("return window.blocked")) == ["img-src", "script-src-elem"]


def test_pictures_load(browser: webdriver.Chrome, study: str) -> None:
    open_page(browser, study)
    widths = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(widths) == 8 and all(width > 300 for width in widths)


def test_the_head_of_the_table_stays_in_view(browser: webdriver.Chrome, study: str) -> None:
    open_page(browser, study)
    before, after, left = browser.execute_script("""
        const view = document.querySelector('.scroll'), head = document.querySelector('#cases thead');
        const first = document.querySelector('#cases tbody th');
        const before = head.getBoundingClientRect().top - view.getBoundingClientRect().top;
        view.scrollTop = 200;
        view.scrollLeft = 300;
        return [before, head.getBoundingClientRect().top - view.getBoundingClientRect().top,
            first.getBoundingClientRect().left - view.getBoundingClientRect().left];
    """)
    assert after == pytest.approx(before, abs=1)
    assert left == pytest.approx(1, abs=1)  # And the first column, to the left.


@pytest.mark.parametrize("page", ["study", "hostile"])
def test_a_phone_scrolls_within_the_table_only(
    browser: webdriver.Chrome, page: str, request: pytest.FixtureRequest
) -> None:
    open_page(browser, request.getfixturevalue(page), PHONE)
    width, table, view = browser.execute_script("""
        const view = document.querySelector('.scroll');
        return [document.documentElement.scrollWidth, view.scrollWidth, view.clientWidth];
    """)
    assert width == PHONE[0]
    assert table > view
    small = browser.execute_script("""
        return [...document.querySelectorAll('#controls input, thead button, summary, nav a')]
            .filter(element => element.checkVisibility() && element.getBoundingClientRect().height < 16).length;
    """)
    assert small == 0


def test_a_phone_shows_throughput_and_accuracy_without_scrolling(browser: webdriver.Chrome, study: str) -> None:
    open_page(browser, study, PHONE)
    for name in ("images/s", "test accuracy"):
        place = head(browser, name, "").rect
        assert place["x"] + place["width"] <= PHONE[0]


def test_print_shows_all_rows_and_no_controls(browser: webdriver.Chrome, study: str) -> None:
    open_page(browser, study)
    everything = len(shown(browser))
    browser.find_element(By.ID, "filter").send_keys("horovod")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert len(shown(browser)) == everything
    assert not browser.find_element(By.ID, "controls").is_displayed()
    assert not browser.find_element(By.TAG_NAME, "nav").is_displayed()
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    pages = re.findall(rb"/MediaBox \[([\d. ]+)\]", base64.b64decode(printed["data"]))
    boxes = {tuple(round(float(number)) for number in page.split()) for page in pages}
    assert boxes == {(0, 0, 595, 842)}, "A4"
    assert len(pages) <= 4, "with twenty cases"


def test_the_printed_table_fits_the_paper(browser: webdriver.Chrome, study: str) -> None:
    open_page(browser, study, (703, 1031), media="print")  # 210 mm less the margins of 12 mm.
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= 703


CONTRAST = """
    const luminance = colour => {
        const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map(value => value / 255)
            .map(value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    };
    const paper = element => {
        const colour = getComputedStyle(element).backgroundColor;
        return colour === 'rgba(0, 0, 0, 0)' ? paper(element.parentElement) : colour;
    };
    return [...document.querySelectorAll('body *')]
        .filter(element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
        .filter(element => element.checkVisibility() && !element.closest('script'))
        .map(element => {
            const both = [luminance(getComputedStyle(element).color), luminance(paper(element))].sort((a, b) => b - a);
            return [(both[0] + 0.05) / (both[1] + 0.05), element.outerHTML.slice(0, 80)];
        }).filter(([ratio]) => ratio < 4.5);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: webdriver.Chrome, study: str, scheme: str) -> None:
    open_page(browser, study, scheme=scheme)
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    assert browser.execute_script(CONTRAST) == []


def test_structure_for_readers_of_all_kinds(browser: webdriver.Chrome, study: str) -> None:
    open_page(browser, study)
    found: dict[str, Any] = browser.execute_script("""
        const all = selector => [...document.querySelectorAll(selector)];
        return {
            language: document.documentElement.lang,
            titles: all('h1').length,
            silent: all('img').filter(image => image.alt.length < 20).length,
            unnamed: all('input').filter(input => !input.labels.length).length,
            heads: all('thead th').filter(cell => !cell.scope).length,
            rows: all('tbody tr').filter(row => row.querySelectorAll('th[scope=row]').length !== 1).length,
            twins: all('[id]').length - new Set(all('[id]').map(element => element.id)).size,
            broken: all('a[href^="#"]').filter(link => !document.querySelector(link.getAttribute('href'))).length,
            foreign: all('[src], link[href]').filter(element => !/^data:/.test(element.src || element.href)).length,
            inline: all('[style], [onclick]').length,
        };
    """)
    assert found == {
        "language": "en",
        "titles": 1,
        "silent": 0,
        "unnamed": 0,
        "heads": 0,
        "rows": 0,
        "twins": 0,
        "broken": 0,
        "foreign": 0,
        "inline": 0,
    }


def test_text_from_records_is_inert(browser: webdriver.Chrome, hostile: str) -> None:
    open_page(browser, hostile)
    assert browser.get_log("browser") == []  # An open alert would raise here.
    assert browser.execute_script("return document.scripts.length") == 1
    sources = browser.execute_script("return [...document.images].map(image => image.getAttribute('src'))")
    assert sources and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    for details in browser.find_elements(By.TAG_NAME, "details"):
        details.click()
    text = browser.find_element(By.TAG_NAME, "body").text
    assert text.count("<script>alert(1)</script>") >= 5


@pytest.mark.thorough
def test_without_a_table_there_is_no_error(browser: webdriver.Chrome, tmp_path: Path) -> None:
    report = write_report(tmp_path, make_study([train("horovod", 2, kind="collectives")], 1))
    open_page(browser, report.html.as_uri())
    assert browser.get_log("browser") == []
    assert "GB/s" in browser.find_element(By.TAG_NAME, "body").text
