"""The documentation site: warnings are errors, and a browser opens it without a network."""

import functools
import http.server
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from documents import DOCUMENTS, ROOT

pytest.importorskip("mkdocstrings", reason="the extra [docs] is not installed")
pytestmark = pytest.mark.ci
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(folder, config=ROOT / "mkdocs.yml"):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(
        [*command, "--site-dir", str(folder), "--config-file", str(config)],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_document_is_a_page_and_links_lead_to_pages(site, hooks):
    for path in DOCUMENTS:
        page = hooks.place(str(path.relative_to(ROOT))).removesuffix(".md") + ".html"
        page = re.sub(r"README\.html$", "index.html", page)
        assert (site / page).exists(), page
    checked = 0
    for page in site.rglob("*.html"):
        for target in re.findall(r'<a\b[^>]*\shref="([^"#]+)', page.read_text("utf-8")):
            if not re.match(r"[a-z]+:", target) and page.name != "404.html":
                assert (page.parent / target).resolve().exists(), f"{page}: {target}"
                checked += 1
    assert checked > 1000


def test_the_reference_shows_what_the_docstrings_say(site):
    import cwt_ext

    text = re.sub(r"<[^>]*>", "", (site / "reference/cwt_ext.html").read_text("utf-8"))
    first = cwt_ext.segment.__doc__.partition("\n")[0]
    assert first in text
    for words in ("label_smoothing", "IndexError", "Raises", "Returns", "Example"):
        assert words in text


def test_links_are_translated(hooks):
    assert hooks.site_link("docs/methods.md#costs", "index.md") == "methods.md#costs"
    assert hooks.site_link("../README.md", "methods.md") == "index.md"
    assert hooks.site_link("../../docs/running.md", "benchmarks/evidence/coin.md") == (
        "../../running.md"
    )
    assert hooks.site_link("../benchmarks/README.md", "tiny.md") == "benchmarks/README.md"
    assert hooks.site_link("benchmarks/evidence", "index.md") == "benchmarks/evidence/README.md"
    assert hooks.site_link("../tests", "testing.md") == "tests/index.md"
    for same in ("https://arxiv.org/abs/2505.18642", "#costs"):
        assert hooks.site_link(same, "methods.md") == same


def test_pages_are_rewritten_outside_code_alone(hooks):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="tiny.md"))
    code = "```python\nx](../README.md)\n- y\n```\n"
    text = "So [see](../README.md):\n- one\n  and more\n- two\n\n" + code
    wanted = "So [see](index.md):\n\n- one\n  and more\n- two\n\n" + code
    assert hooks.on_page_markdown(text, page) == wanted


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("# Page\n\n[away](nowhere.md)\n", "nowhere.md"),
        ("# Page\n\n[away](index.md#nothing)\n", "#nothing"),
        ('# Page\n\n<script src="https://cdn.example/x.js"></script>\n', "loads from a network"),
    ],
)
def test_a_broken_link_and_a_foreign_script_stop_the_build(tmp_path, page, problem):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# Home\n")
    (tmp_path / "docs/page.md").write_text(page)
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    text = re.sub(r"^nav:.*?(?=^not_in_nav)", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^  - mkdocstrings:.*?(?=^validation)", "\n", text, flags=re.M | re.DOTALL)
    hook = "import sys; sys.path.insert(0, {!r})\nfrom hooks import on_post_build\n"
    (tmp_path / "hook.py").write_text(hook.format(str(ROOT / "docs")))
    text = text.replace("hooks: [docs/hooks.py]", "hooks: [hook.py]")
    (tmp_path / "mkdocs.yml").write_text(text)
    done = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert done.returncode != 0
    assert problem in done.stderr


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def address(site):
    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_browser_opens_it_searches_it_and_asks_nobody_else(address):
    if CHROMIUM is None:
        refuse = pytest.fail if os.environ.get("CWT_REQUIRE_BROWSER") else pytest.skip
        refuse("no chromium on PATH (Debian: apt install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    requests, problems = [], []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1300, "height": 900})
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        for page in ("index.html", "method.html", "reference/cwt_ext.html", "csrc/index.html"):
            tab.goto(f"{address}/{page}")
            broken = tab.evaluate("[...document.images].filter(i => !i.naturalWidth).length")
            assert broken == 0, page
            if folder := os.environ.get("CWT_SCREENSHOTS"):
                tab.screenshot(path=str(Path(folder) / f"{page.replace('/', '-')}.png"))
        tab.goto(f"{address}/index.html")
        tab.locator("input[name=query]").click()
        ready = tab.locator(".md-search-result__meta", has_text="Type to start searching")
        ready.wait_for(state="attached")
        tab.locator("input[name=query]").press_sequentially("quadrangle")
        tab.locator(".md-search-result__link").first.wait_for(timeout=30_000)
        assert "segmenter.html" in tab.locator(".md-search-result__list").inner_html()
        browser.close()
    assert problems == []
    assert {url.split("/")[2] for url in requests if url.startswith("http")} == {address[7:]}
