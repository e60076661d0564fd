"""report.html in a real browser: loads without a network, filters, opens an example."""

import os
import re
import shutil

import pytest
from cwt.cli import main
from cwt.config import load_config
from cwt.files import read_json
from cwt.inspect import last_round, view_examples
from cwt.workspace import Workspace

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SMALL = ["--train_size", "20", "--validation_size", "6", "--test_size", "10", "--budget", "3000",
         "--rounds", "1", "--threshold", "0.3", "--max_new_tokens", "24", "--eval_batch_size", "10",
         "--methods", "STT", "--jobs", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "r"
    main(["run", *SMALL, "--out", str(out)])
    return Workspace(load_config(out / "config.yaml"), out)


def test_the_file_is_whole_and_asks_nothing_of_the_network(run):
    text = (run.out / "report.html").read_text()
    page = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)  # plotly names its own site
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page)
    for row in read_json(run.out / "report.json")["methods"]:
        assert f"<td>{row['name']}</td>" in page
        assert f"<td>{100 * row['accuracy']:.1f}</td>" in page
    assert page.count('class="example"') == 20


@pytest.fixture(scope="module")
def page(run):
    if CHROMIUM is None:
        refuse = pytest.fail if os.environ.get("CWT_REQUIRE_BROWSER") else pytest.skip
        refuse("no chromium on PATH (Debian: apt install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 390, "height": 800}, offline=True)
        tab = context.new_page()
        tab.problems = []
        tab.on("console", lambda m: tab.problems.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda error: tab.problems.append(str(error)))
        tab.on("requestfailed", lambda request: tab.problems.append(request.url))
        tab.goto((run.out / "report.html").as_uri())
        yield tab
        browser.close()


def test_it_loads_and_draws_on_a_phone(page):
    page.wait_for_selector("#figure-0 .main-svg")
    assert page.locator(".js-plotly-plot").count() == 4
    assert page.locator("#figure-1 .scatterlayer .trace").count() == 6  # five chunks, the answer
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390  # the table scrolls in its own box
    assert page.problems == []


def test_search_and_filter_show_what_they_say(run, page):
    views, _ = view_examples(run, range(20))
    assert page.locator(".example:visible").count() == 20
    word = views[3].question.split()[0]
    page.fill("#words", word.lower())
    found = [v for v in views if word in v.question + " ".join(u.text for u in v.units)]
    assert page.locator(".example:visible").count() == len(found)
    page.fill("#words", "")
    page.select_option("#only", ".skipped")
    skipped = [v for v in views if not all(u.kept for u in v.units)]
    assert len(skipped) > 0
    assert page.locator(".example:visible").count() == len(skipped)
    assert page.text_content("#shown") == f"{len(skipped)} examples"
    page.select_option("#only", "")


def test_an_example_opens_by_keyboard_and_gives_the_evidence(run, page):
    views, _ = view_examples(run, range(20))
    number, unit = next(
        (i, u) for i, v in enumerate(views) for u, x in enumerate(v.units) if x.decision
    )
    example = page.locator(".example").nth(number)
    example.locator("summary").focus()
    page.keyboard.press("Enter")
    button = example.locator(".unit").nth(unit)
    assert button.is_visible()
    button.focus()
    page.keyboard.press("Enter")
    shown = page.locator(f"#e{number}-{unit}")
    assert shown.is_visible()
    view = views[number].units[unit]
    assert view.reason() in " ".join(shown.text_content().split())
    flips = view.decision["flipped"]
    assert shown.locator("tbody tr").count() == min(12, len(flips))
    struck = button.evaluate("e => getComputedStyle(e).textDecorationLine")
    assert struck == ("none" if view.kept else "line-through")
    page.keyboard.press("Escape")
    assert not shown.is_visible()
    assert last_round(run) == "STT-round-1"
    assert page.problems == []


def test_dark_mode_is_followed(page):
    page.emulate_media(color_scheme="light")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(22, 24, 28)")
